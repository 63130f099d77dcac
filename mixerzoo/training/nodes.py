"""Nodes of one run: each prepares the text in its own time, and the first of them wait for the last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from mixerzoo.errors import RunError
from mixerzoo.process import launch
from mixerzoo.training.processes import meeting
from mixerzoo.training.reporter import Reporter

#: Seconds between two looks, until the user is told, and until it is given up: a terabyte takes days.
_GLANCE, _SOON, _PATIENCE = 0.5, 30.0, 7 * 24 * 3600.0
_ADVICE = (
    "with MIXERZOO_CACHE on a disk that all nodes share, text that a run on one of them has prepared is there for all"
)

_calls = count()


@contextmanager
def waiting_for_nodes(reporter: Reporter) -> Iterator[None]:
    """A block in which this node prepares the text; at its end all processes of the run wait for the last.

    What they do together afterwards gives up on a process that is minutes late, and calls it lost.

    Args:
        reporter: told what is waited for.

    Raises:
        RunError: another node takes more than a week.
    """
    here = launch()
    if here.world_size == here.local_world_size:
        yield
        return
    # Before the text, for the first process waits for the others here.
    store, key = meeting(), f"prepared/{next(_calls)}"
    yield
    store.add(key, 1)
    began, told = time.monotonic(), False
    while (missing := here.world_size - store.add(key, 0)) > 0:
        waited = time.monotonic() - began
        what = f"{missing} of {here.world_size} processes, on other nodes,"
        if waited > _PATIENCE:
            raise RunError(f"{what} have not prepared the text {waited / 3600:.0f} hours after this one; {_ADVICE}")
        if waited > _SOON and not told:
            reporter.notice(f"waiting for {what} which still prepare the text; {_ADVICE}")
            told = True
        time.sleep(_GLANCE)
