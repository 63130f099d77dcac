"""Files that appear whole or not at all, and that are on the disk before they appear.

A rename is what publishes a file or a directory here. What it publishes is synced first and the directory that
holds the name afterwards, so that a power cut leaves the old or the new, never a name without content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What the names of unfinished files and directories end with; nothing reads them, and they may be deleted.
PARTIAL = ".partial"
_UNFINISHED = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An unfinished sibling of a file, which takes its place when the block ends without an error.

    Args:
        path: the file, there or not; its directory must exist.

    Yields:
        An empty file of this process alone, under a name that nobody can foresee.

    Raises:
        OSError: it cannot be written.
    """
    partial = unfinished(path)
    # O_EXCL: neither somebody else's file nor a link that was put there is ever written to. The umask holds.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        mode = partial.stat().st_mode
        with named(path):
            yield partial
            # Some writers make a file of their own under the name, and make it private.
            partial.chmod(mode)
            sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all.

    Args:
        path: its directory must exist.
        text: line breaks are written as they are.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: its directory must exist.
        data: its content.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_bytes(data)


def read_bytes(path: Path, most: int = 1 << 30) -> bytes:
    """What a file holds; it never waits, whatever lies there.

    Args:
        path: the file; links are followed.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no file (a pipe, a device), or is larger.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Is a pipe, a socket or a device, and no file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"Is larger than {most >> 20} MiB, which no such file is", str(path))
        return file.read(most)


def check_writable(path: Path) -> None:
    """Find out whether a file could be written, without touching what is in its place.

    Args:
        path: the file, there or not.

    Raises:
        OSError: it cannot: there is no such directory, nobody may write there, or the disk is full.
    """
    partial = unfinished(path)
    try:
        with named(path), partial.open("xb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An unfinished sibling of a directory, which gets its name when the block ends without an error.

    Args:
        path: must not exist, or be an empty directory; its parent must exist.

    Yields:
        An empty directory of this process alone, under a name that nobody can foresee.

    Raises:
        OSError: it cannot be written, or something is in its place.
    """
    partial = unfinished(path)
    partial.mkdir()
    try:
        with named(path):
            yield partial
        publish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Give a finished directory its name, after all that it holds is on the disk.

    Args:
        partial: the directory, on the same file system.
        path: must not exist, or be an empty directory.

    Raises:
        OSError: something is in its place, or it cannot be written.
    """
    sync_tree(partial)
    os.replace(partial, path)
    sync(path.parent)
    if partial.parent != path.parent:
        sync(partial.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory so that a reader never takes what is left of it for the whole.

    Args:
        path: the directory; it loses its name first.

    Raises:
        OSError: it cannot be deleted.
    """
    going = unfinished(path)
    os.replace(path, going)
    sync(path.parent)
    shutil.rmtree(going)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory with all that it holds.

    Args:
        path: what a link points to stays.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(path: Path) -> None:
    """Bring a file's content, or a directory's names, to the disk.

    Args:
        path: a file or a directory.

    Raises:
        OSError: it cannot be opened, or the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` for a directory and all that is below it.

    Args:
        path: a directory; links in it are not followed.

    Raises:
        OSError: as `sync`.
    """
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            file = Path(folder, name)
            if not file.is_symlink():
                sync(file)
        sync(Path(folder))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unfinished(path: Path) -> Path:
    """A name beside a file or directory for what is not finished, which nobody can foresee."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


def unfinished_in(directory: Path) -> Iterator[tuple[Path, str]]:
    """What `unfinished` named in a directory: leftovers, where no other process is at work in it.

    Args:
        directory: may be missing.

    Yields:
        Each path, and the name that it would have had.
    """
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if match := _UNFINISHED.fullmatch(path.name):
            yield path, match[1]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system in the block name this path where they name none, as that of a full disk does.

    Args:
        path: what is written or read.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
