"""Means with intervals, and paired differences to a baseline, corrected for how many there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mixerzoo.errors import MixerzooError

#: Seeds below which a spread is not known well enough for an interval.
LEAST_SEEDS = 3
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        count: how many seeds.
        mean: over them.
        low: lower end of the t interval; None with fewer than `LEAST_SEEDS`.
        high: its upper end.
    """

    count: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean over seeds of differences to the baseline; below zero is better.

    The interval's level is that of the step of Holm's procedure at which the difference is judged, so that it leaves
    out zero where, and only where, a difference is shown.

    Attributes:
        p: of the paired t-test, not corrected; None with fewer than `LEAST_SEEDS`.
        p_holm: corrected by Holm's procedure.
        verdict: ``better``, ``worse``, ``no difference shown`` or ``too few seeds``.
    """

    p: float | None = None
    p_holm: float | None = None
    verdict: str = "too few seeds"


def check_installed() -> None:
    """Refuse to begin what could not be ended.

    Raises:
        MixerzooError: SciPy or Matplotlib is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("scipy", "matplotlib") if find_spec(name) is None]
    if missing:
        raise MixerzooError(f"compare needs {' and '.join(missing)}: pip install 'mixerzoo[compare]'")


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of some values with its t interval.

    Args:
        values: at least one.
        level: of the interval.
    """
    import numpy as np
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if len(values) < LEAST_SEEDS:
        return Estimate(len(values), mean)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Estimate(len(values), mean, mean - reach, mean + reach)


def differences(
    values: Mapping[str, Mapping[int, float]], baseline: str, level: float = LEVEL
) -> dict[str, Difference]:
    """Every mixer's differences to the baseline, paired by seed.

    Args:
        values: label → seed → figure, of which less is better.
        baseline: a label.
        level: 1 minus the chance to call any difference shown where there is none at all.

    Returns:
        Label → difference, for all but the baseline that share a seed with it.
    """
    found, pairs = {}, {}
    for label, own in values.items():
        seeds = sorted(own.keys() & values.get(baseline, {}).keys())
        if label == baseline or not seeds:
            continue
        pairs[label] = [own[seed] - values[baseline][seed] for seed in seeds]
        plain = estimate(pairs[label])
        found[label] = Difference(plain.count, plain.mean)
        if plain.count >= LEAST_SEEDS:
            found[label] = replace(found[label], p=_p_value(pairs[label]))
    tested = {label: each.p for label, each in found.items() if each.p is not None}
    for label, (p_holm, factor) in holm(tested, 1 - level).items():
        interval = estimate(pairs[label], 1 - (1 - level) / factor)
        verdict = "no difference shown"
        if p_holm < 1 - level:
            verdict = "better" if interval.mean < 0 else "worse"
        found[label] = replace(found[label], low=interval.low, high=interval.high, p_holm=p_holm, verdict=verdict)
    return found


def _p_value(pairs: Sequence[float]) -> float:
    """Two-sided, of a paired t-test."""
    from scipy import stats

    if len(set(pairs)) == 1:
        # Without any spread the statistic is 0/0 or infinite.
        return 1.0 if pairs[0] == 0 else 0.0
    return float(stats.ttest_1samp(pairs, 0).pvalue)


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, tuple[float, int]]:
    """Holm's step-down correction.

    Args:
        p_values: name → p.
        alpha: at which it stops.

    Returns:
        Name → corrected p, and by what ``alpha`` is divided at the step at which it is judged.
    """
    found: dict[str, tuple[float, int]] = {}
    largest, stopped = 0.0, 0
    for step, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        left = len(p_values) - step
        largest = max(largest, min(1.0, left * p_values[name]))
        if not stopped and largest >= alpha:
            stopped = left
        found[name] = (largest, stopped or left)
    return found


def frontier(points: Mapping[str, tuple[float | None, float | None]]) -> set[str]:
    """The labels that nothing beats in both of two figures, of which less is better.

    Args:
        points: label → two figures; where one is missing, the label is left out.
    """
    known = {label: (x, y) for label, (x, y) in points.items() if x is not None and y is not None}
    return {
        label
        for label, (x, y) in known.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in known.values())
    }
