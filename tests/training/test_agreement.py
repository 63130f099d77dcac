"""Processes that stop together: what one of them hears, all take for the first signal, and nobody leaves early."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from mixerzoo.training import run
from mixerzoo.training.interrupts import Interrupts, Terminated
from mixerzoo.training.run_callback import RunCallback

TERM = signal.SIGTERM


def callback_of_several(interrupts: Interrupts) -> RunCallback:
    nothing: Any = None
    callback = RunCallback(
        nothing, nothing, nothing, nothing, interrupts, nothing, nothing, main=True, validate_first=False
    )
    callback._group = object()
    return callback


def others(monkeypatch: pytest.MonkeyPatch, *heard: int, meanwhile: int = 0) -> None:
    """What other processes have heard at each agreement; a signal may reach this one in the middle of the first."""
    answers, signals = iter(heard), [meanwhile] if meanwhile else []

    def all_reduce(own: Any, operation: Any, group: Any) -> None:
        own.fill_(max(int(own), next(answers)))
        if signals:
            os.kill(os.getpid(), signals.pop())

    monkeypatch.setattr(dist, "all_reduce", all_reduce)


def test_a_signal_in_the_middle_of_an_agreement_counts_at_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    others(monkeypatch, 0, 0, meanwhile=TERM)
    found = []

    def steps() -> None:
        with Interrupts() as interrupts, interrupts.held():
            callback = callback_of_several(interrupts)
            found.extend(callback.to_stop() for _ in range(2))

    with pytest.raises(Terminated):
        steps()
    assert found == [False, True]


def test_the_first_signal_of_a_process_that_was_told_of_one_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    others(monkeypatch, TERM)
    reached = []

    def steps() -> None:
        with Interrupts(once=60) as interrupts, interrupts.held():
            assert callback_of_several(interrupts).to_stop()
            os.kill(os.getpid(), TERM)
            reached.append("the checkpoint")

    with pytest.raises(Terminated):
        steps()
    assert reached


@pytest.mark.parametrize("hold", [True, False])
def test_a_signal_cuts_no_error_off_and_a_second_one_does(hold: bool) -> None:
    """As torchrun sends it to the others when one process is lost."""
    reached = []

    def steps(signals: int) -> None:
        with Interrupts(hold=hold) as interrupts:
            try:
                with interrupts.held():
                    raise RuntimeError("the connection is lost")
            finally:
                for _ in range(signals):
                    os.kill(os.getpid(), TERM)
                    reached.append(signals)

    with pytest.raises(RuntimeError, match="the connection is lost"):
        steps(1)
    with pytest.raises(Terminated):
        steps(2)
    assert reached == [1, 2]


def test_nobody_leaves_before_the_checkpoint_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    with Interrupts() as interrupts:
        trainer: Any = SimpleNamespace(
            train=lambda resume_from_checkpoint: os.kill(os.getpid(), TERM),
            finish_saving=lambda: order.append("named"),
        )
        callback: Any = SimpleNamespace(to_stop=lambda: order.append("together"))
        recipe: Any = SimpleNamespace(train=SimpleNamespace(steps=1))
        nothing: Any = None
        work = run._Work(nothing, recipe, "", "", nothing, interrupts, main=True)
        with pytest.raises(Terminated):
            work._steps(trainer, callback, run._Start())
    assert order == ["named", "together"]
