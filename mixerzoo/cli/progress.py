"""Progress of a command, on stderr."""

from __future__ import annotations

from mixerzoo.cli.verbosity import stderr_console
from mixerzoo.training import ProgressReporter


class BarReporter(ProgressReporter):
    """Bars where stderr is a terminal, plain lines elsewhere; nothing if quiet."""

    def __init__(self) -> None:
        super().__init__(stderr_console())
