"""Figures of a report: what they say of values that are no numbers."""

from __future__ import annotations

import pytest

from mixerzoo.experiments import plots

TRIED = {"numbers": [0.001, 0.01], "switches": [False, True], "words": ["cosine", "wsd"]}


@pytest.mark.parametrize("values", TRIED.values(), ids=TRIED)
def test_every_kind_of_tuned_value_is_drawn_and_named(values):
    trials = [{"values": {"key": value}, "bits_per_byte": 2.0 + n} for n, value in enumerate(values)]
    found = [{"label": "residual", "trials": trials}]
    svg = plots.tuning(found, "key", {"residual": 0}, "f0")
    assert f"<title>residual: {values[0]}: 2.0000, {values[1]}: 3.0000</title>" in svg
