"""Which GPU a process trains on; there need not be one here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from typer.testing import CliRunner

from mixerzoo.cli import app
from mixerzoo.errors import RunError
from mixerzoo.training import arguments, checks, processes, run
from runs import QUICKSTART, tiny_recipe


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is made the current one of two GPUs."""
    numbers: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return numbers


def be_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be one of three of a launch."""
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "here", "MASTER_PORT": 1}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))


def test_a_process_takes_the_gpu_of_its_own_number(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    processes.take_device()
    be_process(1, monkeypatch)
    processes.take_device()
    assert taken == [0, 1]
    be_process(2, monkeypatch)
    with pytest.raises(RunError, match=r"process 2 .* none of its 2; start at most as many .*--nproc-per-node 2"):
        processes.take_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    processes.take_device()
    assert taken == [0, 1]


def test_nothing_asks_for_a_gpu_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def take() -> None:
        heard.append("take")

    def ask(*_: Any) -> None:
        heard.append("ask")
        raise RunError("enough")

    for taker, asker in (
        ("mixerzoo.training.run.take_device", "mixerzoo.training.run.check_possible"),
        ("mixerzoo.training.take_device", "mixerzoo.cli.train.pick_device"),
    ):
        monkeypatch.setattr(taker, take)
        monkeypatch.setattr(asker, ask)
    with pytest.raises(RunError, match="enough"):
        run.train(tiny_recipe(), tmp_path / "run")
    assert CliRunner().invoke(app, ["train", str(QUICKSTART), "--out", str(tmp_path / "run")]).exit_code == 2
    assert heard == ["take", "ask"] * 2


def test_one_process_trains_on_one_of_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Several(TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 4

    monkeypatch.setattr(arguments, "TrainingArguments", Several)
    made = arguments.training_arguments(tiny_recipe(), tmp_path)
    assert (made.n_gpu, made.train_batch_size) == (1, tiny_recipe().train.batch_size)


@pytest.mark.usefixtures("taken")
def test_gpus_that_stay_idle_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = processes.idle_gpus()
    assert said.startswith("2 GPUs are here, and one is used; torchrun --nproc-per-node 2 ")
    with monkeypatch.context() as patch:
        be_process(0, patch)
        assert processes.idle_gpus() == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert processes.idle_gpus() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.idle_gpus() == []
    monkeypatch.setattr(checks, "idle_gpus", lambda: [said])
    assert checks.check_possible(tiny_recipe()) == [said]
