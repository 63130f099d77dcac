"""Each mixer's own values: those at which it does best, on seeds that the comparison does not use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell, Comparison, Values, Variant
from mixerzoo.yaml_text import from_yaml


@dataclass(frozen=True)
class Tuning:
    """What was tried for one mixer in one setting.

    Attributes:
        label: of the mixer.
        setting: values of the varied keys.
        trials: each variant with its mean bits per byte; None where a run of it failed or is missing.
        chosen: the best; None: there is none.
        edges: keys whose chosen value is the least or the largest that was tried.
    """

    label: str
    setting: Values
    trials: tuple[tuple[Variant, float | None], ...]
    chosen: Variant | None
    edges: tuple[str, ...]


def choose(
    comparison: Comparison, directory: ComparisonDirectory, label: str, setting: Values, cells: Sequence[Cell]
) -> Tuning:
    """Choose a mixer's values.

    Args:
        comparison: what is compared.
        directory: holds the runs.
        label: of the mixer.
        setting: values of the varied keys.
        cells: all trials.
    """
    trials = []
    for variant in comparison.variants_of(label, setting):
        runs = [directory.run(cell) for cell in cells if cell.variant == variant]
        bits = [run.result()["bits_per_byte"] for run in runs if run.finished]
        whole = len(bits) == len(comparison.tuning_seeds)
        trials.append((variant, math.fsum(bits) / len(bits) if whole else None))
    known = [(bits, variant) for variant, bits in trials if bits is not None]
    chosen = min(known, key=lambda each: each[0])[1] if known else None
    edges = () if chosen is None else tuple(_edges(comparison.tune, chosen))
    return Tuning(label, setting, tuple(trials), chosen, edges)


def _edges(grid: Any, chosen: Variant) -> list[str]:
    found = []
    for key, text in chosen.tuned:
        values, value = grid[key], from_yaml(text)
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
        if numbers and len(values) > 1 and value in (min(values), max(values)):
            found.append(key)
    return found
