"""Means, intervals, paired differences and Holm's correction, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mixerzoo.experiments.statistics import differences, estimate, frontier, holm


def test_a_mean_and_its_interval_by_hand():
    found = estimate([1.0, 2.0, 3.0])
    # Standard deviation 1; with two degrees of freedom t has a closed form: 4.302653.
    t = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(t / math.sqrt(3), rel=1e-12)
    assert found.low == pytest.approx(4 - found.high, rel=1e-12)


def test_intervals_are_those_of_scipy():
    values = np.random.default_rng(0).normal(2.3, 0.04, 7)
    found, theirs = estimate(list(values)), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_two_seeds_give_no_interval():
    found = estimate([1.0, 2.0])
    assert (found.mean, found.low, found.high) == (1.5, None, None)


def test_one_difference_is_a_paired_t_test():
    rng = np.random.default_rng(1)
    base = rng.normal(2.4, 0.1, 5)
    own = base - 0.05 + rng.normal(0, 0.01, 5)
    found = differences({"a": dict(enumerate(base)), "b": dict(enumerate(own))}, "a")["b"]
    theirs = stats.ttest_rel(own, base)
    interval = theirs.confidence_interval(0.95)
    assert found.p == found.p_holm == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.verdict == "better"


def test_seeds_are_paired_whatever_their_order_and_those_of_one_alone_are_left_out():
    found = differences({"a": {0: 1.0, 1: 2.0, 2: 4.0, 9: 7.0}, "b": {2: 3.9, 1: 1.8, 0: 0.7}}, "a")["b"]
    assert found.count == 3
    assert found.mean == pytest.approx(-0.2)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 0.05)
    assert {name: p for name, (p, _) in found.items()} == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    # It stops at c, where two are left; what comes after is judged there.
    assert {name: factor for name, (_, factor) in found.items()} == {"d": 4, "a": 3, "c": 2, "b": 2}


def test_an_interval_leaves_out_zero_exactly_where_a_difference_is_shown():
    rng = np.random.default_rng(2)
    base = rng.normal(2, 0.1, 5)
    shifts = {f"m{i}": shift for i, shift in enumerate((-0.05, -0.02, -0.01, 0.0, 0.01, 0.03, 0.2))}
    values = {name: dict(enumerate(base + shift + rng.normal(0, 0.01, 5))) for name, shift in shifts.items()}
    found = differences({"base": dict(enumerate(base)), **values}, "base")
    verdicts = {each.verdict for each in found.values()}
    assert verdicts == {"better", "worse", "no difference shown"}
    for each in found.values():
        assert (each.low > 0 or each.high < 0) == (each.verdict != "no difference shown")


def test_the_same_figures_under_two_names_show_no_difference():
    own = {0: 2.1, 1: 2.2, 2: 2.15}
    found = differences({"a": own, "b": dict(own)}, "a")["b"]
    assert (found.mean, found.low, found.high, found.p_holm) == (0, 0, 0, 1)
    assert found.verdict == "no difference shown"


def test_fewer_than_three_shared_seeds_say_nothing():
    found = differences({"a": {0: 1.0, 1: 2.0}, "b": {0: 0.5, 1: 1.5}}, "a")["b"]
    assert (found.low, found.p, found.verdict) == (None, None, "too few seeds")


def test_chance_alone_is_called_a_difference_as_rarely_as_it_says():
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(300):
        values = {f"m{i}": dict(enumerate(rng.normal(2, 0.1, 4))) for i in range(5)}
        called += any(each.verdict != "no difference shown" for each in differences(values, "m0").values())
    assert called < 300 * 0.09


def test_the_frontier():
    points = {"cheap": (1, 3.0), "good": (3, 1.0), "beaten": (3, 2.0), "twin": (1, 3.0), "unknown": (None, 0.0)}
    assert frontier(points) == {"cheap", "good", "twin"}
