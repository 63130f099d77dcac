"""Ctrl-C and SIGTERM while a run trains: what is being done comes to its end, and the run can go on later."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM asked the process to end; its exit code is 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupts:
    """Holds back the first Ctrl-C or SIGTERM while steps are taken, and while an error that ended them goes up; at any
    other time, and the second time, it ends what runs at once.

    As a context manager it takes the two signals, and gives them back at the end. A signal that is ignored, as under
    nohup, stays so; outside the main thread, which alone hears of signals, nothing is taken.

    Args:
        hold: whether the first is held back at all.
        say: what is written to standard error then; "" for nothing.
        once: seconds after the first in which another is no second one: a scheduler's goes to all processes, and
            torchrun hands on its own.
    """

    def __init__(self, *, hold: bool = True, say: str = "", once: float = 0.0) -> None:
        self._hold, self._say, self._once = hold, say, once
        self._since = -math.inf
        self._holding = False
        #: Whether an error ends the run already: it has words, which the first signal would cut off.
        self._ending = False
        self._before: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        #: The signal that was held back.
        self.received: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which the first signal only sets ``received``; it is raised at the block's end.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Terminated: after SIGTERM.
        """
        self._holding = self._hold
        try:
            yield
        except BaseException:
            self._ending = True
            raise
        finally:
            self._holding = False
        if self.received is not None:
            _end(self.received)

    def agree(self, number: int) -> None:
        """Take a signal that any process of the run has received as this one's first.

        Args:
            number: of the signal.
        """
        if self.received is None:
            # Before it, for a signal in between would count as the second.
            self._since = time.monotonic()
        self.received = number

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker of the loader, which ends with the process that it reads for
        if self._holding and self.received is None:
            self.received, self._since = number, time.monotonic()
            if self._say:
                # Nothing else may be called here: a stream of Python's could be in the middle of a line.
                os.write(2, f"\n{self._say}\n".encode())
            return
        if self._ending and self.received is None:
            self.received, self._since = number, time.monotonic()
            return
        if (self._holding or self._ending) and time.monotonic() - self._since < self._once:
            return
        _end(number)


def _end(number: int) -> NoReturn:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
