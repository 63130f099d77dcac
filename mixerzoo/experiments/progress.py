"""How a comparison goes: a table that is written anew on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mixerzoo.experiments.grid import Cell


class Board:
    """Shows the runs of a comparison, and the time left; a context manager.

    Args:
        console: where to.
        jobs: runs at a time, for the time left.
    """

    def __init__(self, console: Console, jobs: int = 1) -> None:
        self._console, self._jobs = console, jobs
        self._moving = console.is_terminal
        self._running: dict[Cell, tuple[int, float | None]] = {}
        self._since: dict[Cell, float] = {}
        self._total = self._done = self._failed = 0
        self._steps_left = 0
        self._steps_taken, self._seconds_taken = 0, 0.0
        self._started_at: dict[Cell, int] = {}
        # It asks for the table at once.
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._moving:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving:
            self._live.stop()

    def planned(self, cells: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """So many cells are next, of which some were finished before."""
        self._total, self._done, self._failed = len(cells), len(finished), 0
        self._steps_left = sum(cell.recipe.train.steps for cell in cells if cell not in finished)
        what = {"speed": "runs that measure speed", "tune": "runs that tune", "compare": "runs"}
        if cells:
            before = f", {len(finished)} of them finished before" if finished else ""
            self._print(f"{len(cells)} {what[cells[0].purpose]}{before}")

    def began(self, cell: Cell) -> None:
        """The process of a cell is started."""
        self._running[cell], self._since[cell] = (0, None), time.monotonic()
        if not self._moving:
            self._print(f"begins: {cell.title}")

    def step(self, cell: Cell, step: int, loss: float | None, *, first: bool) -> None:
        """A step is done."""
        if first:
            self._started_at[cell] = step
        self._running[cell] = (step, loss)

    def ended(self, cell: Cell, error: str | None, result: Mapping[str, Any] | None) -> None:
        """A cell is finished, or failed with an error."""
        self._running.pop(cell)
        seconds = time.monotonic() - self._since.pop(cell)
        steps = cell.recipe.train.steps
        self._steps_left -= steps
        if result is None:
            self._failed += 1
            self._print(f"FAILED: {cell.title}: {error}")
            return
        self._done += 1
        self._steps_taken += steps - self._started_at.pop(cell, 0)
        self._seconds_taken += seconds
        self._print(
            f"{self._done + self._failed}/{self._total} {cell.title}: {result['bits_per_byte']:.4f} bits per byte, "
            f"{_time(seconds)}{self._left()}"
        )

    def _seconds_left(self) -> float | None:
        if not self._steps_taken:
            return None
        left = self._steps_left - sum(step for step, _ in self._running.values())
        return max(0.0, left * self._seconds_taken / self._steps_taken / self._jobs)

    def _left(self) -> str:
        left = self._seconds_left()
        return "" if left is None or self._done + self._failed == self._total else f", about {_time(left)} left"

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _table(self) -> Group:
        if not self._total:
            return Group()  # the text is being prepared
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for title in ("run", "step", "loss", "time"):
            table.add_column(title, justify="left" if title == "run" else "right", overflow="fold")
        for cell, (step, loss) in self._running.items():
            seconds = _time(time.monotonic() - self._since[cell])
            shown = "" if loss is None else f"{loss:.3f}"
            table.add_row(Text(cell.title), f"{step}/{cell.recipe.train.steps}", shown, seconds)
        failed = f", {self._failed} failed" if self._failed else ""
        return Group(table, Text(f"{self._done} of {self._total} finished{failed}{self._left()}"))


def _time(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"
