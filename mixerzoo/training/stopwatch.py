"""How long training steps take, without what comes between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Measures steps from the end of one to the end of the next.

    The first step of a process is no part of the speed: compilers, allocators and data loaders begin in it. On a GPU
    the clock stops after the work that was asked for is done.

    Args:
        compiled: whether the first step is spent in a compiler, so that it says nothing even where it is the only one.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        self._compiled = compiled
        self._first: float | None = None
        self._began = False
        self._since: float | None = None
        #: What was measured, other processes' part of the same run included.
        self.steps = 0
        self.seconds = 0.0
        #: Of the first step of each process.
        self.first_seconds = 0.0

    def start(self) -> None:
        """Steps begin."""
        self._since = time.monotonic()

    def step(self) -> None:
        """A step is done."""
        if self._began:
            self.steps += 1
            return
        self._began = True
        before = self._since
        _wait()
        now = time.monotonic()
        if before is not None:
            self._first = now - before
            self.first_seconds += self._first
            self._since = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block that is no part of a step."""
        running = self._since is not None
        if self._since is not None:
            _wait()
            self.seconds += time.monotonic() - self._since
            self._since = None
        try:
            yield
        finally:
            if running:
                self._since = time.monotonic()

    @property
    def steps_per_second(self) -> float | None:
        """Over all steps measured; None: there is none yet."""
        if self.steps:
            return self.steps / max(1e-9, self.seconds + self._running)
        if self._first is None or self._compiled:
            return None
        return 1 / max(1e-9, self._first)

    @property
    def total_seconds(self) -> float:
        """Of all steps, the first ones included."""
        return self.first_seconds + self.seconds + (self._running if self._began else 0.0)

    @property
    def _running(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
