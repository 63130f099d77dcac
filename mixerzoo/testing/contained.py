"""Keeps what a mixer under test does to the process from the checks that come after."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from mixerzoo.process import Snapshot


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Undo what is changed of the process, and drop what is written, without a word: clause 3.11 says it."""
    snapshot = Snapshot()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        snapshot.restore()
