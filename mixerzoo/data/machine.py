"""What the processes of one machine do once: one of them works while the others wait and are told what it found.

They meet in a folder of the machine's own, not in the cache, which may lie on a file system that knows no locks. The
system lets go of a lock when its holder ends, however it ends, so that a waiting process then does the work itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from mixerzoo.data.progress import Progress
from mixerzoo.errors import DataError
from mixerzoo.files import write_text

# Seconds that the other processes of a launch leave to its first one, which shows progress, to begin.
_HEAD_START = 60.0
_GLANCE = 0.05
# Seconds after which what nobody is at is removed.
_OLD = 7 * 24 * 3600.0
# What is left beside a lock: a mark that something was done or begun, and what came of it.
_ENDINGS = ("", ".begun", ".json")

#: How often this process has asked for each thing: the n-th call of one shares the work of the others' n-th.
_calls: Counter[str] = Counter()


@contextmanager
def alone(what: str, report: Progress) -> Iterator[None]:
    """Holds other processes of this machine and user off the same thing while the block runs.

    Args:
        what: its name.
        report: told the stage ``"wait"`` where another process is at it.
    """
    folder = shared_folder()
    if folder is None:
        yield
        return
    with locked(folder / _name(what), report):
        yield


def once_a_launch(what: Sequence[str], work: Callable[[], dict[str, Any]], report: Progress) -> dict[str, Any]:
    """What ``work`` gives, done by one process of a launch on this machine.

    Its first process does it. Where that is killed meanwhile, or has not begun in time, another one does.

    Args:
        what: tells one thing to do from others.
        work: gives what JSON can hold.
        report: as in `alone`.

    Raises:
        DataError: as ``work``, in all processes.
    """
    folder = shared_folder()
    if folder is None or os.environ.get("LOCAL_WORLD_SIZE", "1") == "1":
        return work()
    name = _name(*what)
    _calls[name] += 1
    place = folder / _name(name, str(_calls[name]), *_launch())
    begun, answer = Path(f"{place}.begun"), Path(f"{place}.json")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        patience = time.monotonic() + _HEAD_START
        while not begun.exists() and time.monotonic() < patience:
            time.sleep(_GLANCE)
    with locked(place, report):
        begun.touch()
        try:
            told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            try:
                told = {"found": work()}
            except DataError as error:
                told = {"error": str(error)}
                write_text(answer, json.dumps(told))
                raise
            write_text(answer, json.dumps(told))
    if "error" in told:
        raise DataError(told["error"])
    found: dict[str, Any] = told["found"]
    return found


def of_this_launch(what: str) -> Path | None:
    """A path in the shared folder for one thing and one launch; None where there is no other process to share with."""
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == "1":
        return None
    folder = shared_folder()
    return None if folder is None else folder / _name(what, *_launch())


def shared_folder() -> Path | None:
    """Where processes of this user on this machine leave word; None where there is no place for it."""
    folder = Path(tempfile.gettempdir(), f"mixerzoo-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None  # each process works for itself
    # Nobody else may leave word there.
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    if not own:
        return None
    _sweep(folder)
    return folder


@contextmanager
def marked(path: Path) -> Iterator[None]:
    """Leaves word, while the block runs, that something is made here; where the process is killed, the word stays.

    Args:
        path: of what is made.
    """
    word = _word(path)
    if word is not None:
        word.touch()
    try:
        yield
    finally:
        if word is not None:
            word.unlink(missing_ok=True)


def is_marked(path: Path) -> bool:
    """Whether a process of this machine and user makes it, or was killed at it.

    Args:
        path: as for `marked`.
    """
    word = _word(path)
    return word is not None and word.exists()


def _word(path: Path) -> Path | None:
    folder = shared_folder()
    return None if folder is None else folder / f"{_name(str(path.absolute()))}.begun"


@contextmanager
def locked(place: Path, report: Progress) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
        place: a path in the shared folder, without an ending.
        report: as in `alone`.
    """
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report("wait", 0, 0)
        lock.acquire()
    try:
        os.utime(f"{place}.lock")
        yield
    finally:
        lock.release()


@cache
def _sweep(folder: Path) -> None:
    """Remove what was left long ago, once a process. Whoever waits for a lock looks whether its file is still there."""
    limit = time.time() - _OLD
    found: dict[str, set[Path]] = {}
    for path in (path for path in folder.iterdir() if not path.is_dir()):
        # Be it unfinished.
        found.setdefault(path.name.removeprefix(".").partition(".")[0], set()).add(path)
    for place, paths in found.items():
        if any(_changed(path) > limit for path in paths):
            continue
        own = folder / f"{place}.lock"
        lock = FileLock(own)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        try:
            left = {*paths, *(folder / f"{place}{end}" for end in _ENDINGS)} - {own}
            # Somebody may have come back to it.
            if all(_changed(path) <= limit for path in left):
                for path in (*left, own):
                    path.unlink(missing_ok=True)
        finally:
            lock.release()


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0  # another process sweeps, too


def _name(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _launch() -> list[str]:
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    launcher = os.getppid()
    return [str(launcher), _started(launcher), *(os.environ.get(name, "") for name in names)]


def _started(process: int) -> str:
    """When a process began: in a container, launches one after the other have the same number."""
    try:
        # Ticks since the machine began, which no change of its clock moves.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return str(psutil.Process(process).create_time())  # not Linux
