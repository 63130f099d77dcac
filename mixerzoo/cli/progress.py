"""Progress of a command, on stderr."""

from __future__ import annotations

from rich.console import Console

from mixerzoo.training import ProgressReporter


class BarReporter(ProgressReporter):
    """Bars where stderr is a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True, markup=False, highlight=False, emoji=False))
