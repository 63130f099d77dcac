"""Runs of a comparison beside each other, in processes that are none."""

from __future__ import annotations

import pytest

from mixerzoo.errors import RunError
from mixerzoo.experiments import Flags, read_comparison, runner
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell
from runs import QUICKSTART


class Silent:
    """Hears nothing."""

    def planned(self, cells, finished): ...
    def began(self, cell): ...
    def step(self, cell, step, loss, *, first): ...
    def ended(self, cell, error, result): ...


class Process:
    """Ends at once with an error."""

    stdin = stdout = None

    def wait(self):
        return 2

    def terminate(self): ...


@pytest.fixture
def cells():
    found = read_comparison(QUICKSTART, (), Flags(mixers="residual", seeds="6"))
    ((variant, recipe),) = found.variants.items()
    return [Cell.of(variant, recipe, seed, None) for seed in found.seeds]


def test_failures_before_a_full_disk_are_kept(cells, tmp_path, monkeypatch):
    def start(cell, directory, workers, slot, events):
        number = 28 if cell.seed == 2 else None
        events.put((slot, {"error": f"error {cell.seed}", "number": number}))
        events.put((slot, None))
        return runner._Job(cell, Process())

    monkeypatch.setattr(runner, "_start", start)
    failed = {}
    with pytest.raises(RunError, match="the disk is full: error 2"):
        runner.run_cells(cells, ComparisonDirectory(tmp_path), runner.Workers(), Silent(), failed)
    assert failed == {cell: f"error {cell.seed}" for cell in cells[:3]}
