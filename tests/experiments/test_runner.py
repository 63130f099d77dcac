"""Runs of a comparison beside each other, in processes that are none."""

from __future__ import annotations

import pytest
import torch

from mixerzoo.errors import BackendError, RunError
from mixerzoo.experiments import Flags, devices, find_devices, read_comparison, runner
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
    def start(cell, directory, workers, device, slot, events):
        number = 28 if cell.seed == 2 else None
        events.put((slot, {"error": f"error {cell.seed}", "number": number}))
        events.put((slot, None))
        return runner._Job(cell, Process())

    monkeypatch.setattr(runner, "_start", start)
    failed = {}
    with pytest.raises(RunError, match="the disk is full: error 2"):
        runner.run_cells(cells, ComparisonDirectory(tmp_path), runner.Workers(), Silent(), failed)
    assert failed == {cell: f"error {cell.seed}" for cell in cells[:3]}


@pytest.mark.parametrize(
    ("jobs", "names", "taken"),
    [
        (1, ("cuda:0", "cuda:1"), ["cuda:0", "cuda:1"] * 3),
        (2, ("cuda:0", "cuda:1", "cuda:2"), ["cuda:0", "cuda:1", "cuda:2"] * 2),
        (1, (), [None] * 6),
    ],
)
def test_runs_take_devices_in_turn(jobs, names, taken, cells, tmp_path, monkeypatch):
    found = []

    def start(cell, directory, workers, device, slot, events):
        found.append(device)
        events.put((slot, {"error": "ended", "number": None}))
        events.put((slot, None))
        return runner._Job(cell, Process(), device)

    monkeypatch.setattr(runner, "_start", start)
    runner.run_cells(cells, ComparisonDirectory(tmp_path), runner.Workers(jobs, devices=names), Silent(), {})
    assert found == taken


def test_no_two_runs_share_a_device_while_another_is_free():
    turns = devices.Turns(["cuda:0", "cuda:1"])
    assert [turns.take(), turns.take()] == ["cuda:0", "cuda:1"]
    turns.give_back("cuda:1")
    assert turns.take() == "cuda:1"
    assert [turns.take(), turns.take()] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("inherited", "device", "visible"),
    [
        (None, "cuda:1", "1"),
        ("4,5", "cuda:1", "5"),
        ("GPU-a, GPU-b", "cuda:1", "GPU-b"),
        ("4,5", "cpu", ""),
        ("4,5", None, "4,5"),
    ],
)
def test_a_run_sees_the_device_that_this_process_calls_so(inherited, device, visible, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    assert runner._environment(1, device)["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cuda", "cuda:0"], "'cuda:0' is there twice"),
        (["cpu", "cuda:1"], "cpu, cuda:1: .* name devices of one kind"),
        (["mps"], "runs train on cpu or cuda"),
    ],
)
def test_devices_that_make_no_comparison_are_refused(names, words, monkeypatch):
    monkeypatch.setattr(devices, "find_device", torch.device)
    assert find_devices(["cuda", "cuda:1"]) == ("cuda:0", "cuda:1")
    with pytest.raises(BackendError, match=words):
        find_devices(names)
