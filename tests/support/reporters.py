"""Reporters that do something at a step, and runs that are interrupted by them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixerzoo.training.run import Reporter, train
from runs import tiny_recipe


class At(Reporter):
    """Does something when a step is done, and remembers what it is told."""

    def __init__(self, step: int = 0, do: Callable[[], object] = lambda: None) -> None:
        self._step, self._do = step, do
        self.notices: list[str] = []
        self.first_step: int | None = None

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def ready(self, recipe: Any, decoder: Any, data: Any, first_step: int) -> None:
        self.first_step = first_step

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        if step == self._step:
            self._do()


def send(*signals: int) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


def stopped(directory: Path, step: int, *overrides: str, save: bool = False) -> Path:
    """A run that was interrupted after a step, with no checkpoint but those of its interval unless ``save``."""
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny_recipe(*overrides),
            directory,
            save_on_interrupt=save,
            reporter=At(step, lambda: send(signal.SIGINT)),
        )
    return directory
