"""Remembers what was verified, so that checksums are computed once a run on each machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mixerzoo.data.machine import locked, of_this_launch
from mixerzoo.data.progress import silent

_seen: set[str] = set()


def once(files: Sequence[Path], verify: Callable[[], None]) -> None:
    """Calls ``verify`` unless this process, or another of the same launch, has done so since the files were written.

    What counts as written is what the system says: identity, size and times of the files. It cannot tell that a disk
    has lost bits since, so that each run begins by verifying.

    Args:
        files: what is verified.
        verify: raises where something is wrong.

    Raises:
        OSError: a file is gone.
    """
    stats = [os.stat(file) for file in files]
    state = [
        (str(f), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in zip(files, stats, strict=True)
    ]
    key = hashlib.sha256(repr(state).encode()).hexdigest()
    if key in _seen:
        return
    marker = of_this_launch(key)
    if marker is None:
        verify()
    else:
        with locked(marker, silent):
            if not marker.exists():
                verify()
                marker.touch()
    _seen.add(key)
