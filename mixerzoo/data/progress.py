"""Progress of long passes over text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with the stage, the bytes of text done, and the bytes in all (0 where that is not known)."""

_STEP = 1 << 20


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody hears of."""


class Meter:
    """Counts bytes of one stage and reports every MiB."""

    def __init__(self, report: Progress, stage: str, total: int) -> None:
        self.done = 0
        self._report = report
        self._stage = stage
        self._total = total
        self._next = _STEP
        report(stage, 0, total)

    def add(self, num_bytes: int) -> None:
        """Counts ``num_bytes`` more."""
        self.done += num_bytes
        if self.done >= self._next:
            self._next = self.done + _STEP
            self._report(self._stage, self.done, self._total)

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        """Passes ``texts`` on and counts their UTF-8 bytes."""
        for text in texts:
            yield text
            self.add(len(text.encode()))

    def finish(self) -> None:
        """Reports the end of the stage."""
        self._report(self._stage, self.done, self.done)
