"""Which line of a mixer is at work."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path

_LIBRARIES = ("torch", "mixerzoo")


def line_at_work() -> str:
    """The innermost line that runs now within a mixer's call, e.g. ``method.py, line 12: `x.mean(-1)` ``.

    It is one of the mixer's own where there is any, else one of mixerzoo. To be called from a
    ``TorchDispatchMode``.
    """
    frame, inner = sys._getframe(2), None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("mixerzoo.testing"):
            break
        if module.partition(".")[0] not in _LIBRARIES:
            inner = frame
            break
        if inner is None and module.startswith("mixerzoo"):
            inner = frame
        frame = frame.f_back  # type: ignore[assignment]
    if inner is None:
        return "outside of its lines"
    file, line = inner.f_code.co_filename, inner.f_lineno
    return f"{Path(file).name}, line {line}: `{linecache.getline(file, line).strip()}`"


def in_words(found: dict[str, str]) -> str:
    """Operations and where they are, e.g. ``mean (method.py, line 12: `x.mean(-1)`)``."""
    return " and ".join(f"{name} ({line})" for name, line in sorted(found.items()))
