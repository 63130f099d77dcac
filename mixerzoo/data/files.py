"""Reads documents from local text, JSON-lines and Parquet files."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixerzoo.data.formats import check_name, damage, first_few, open_file, read_column, unpacked_name
from mixerzoo.errors import DataError, did_you_mean

_BYTE_ORDER_MARK = "\ufeff"


def read_files(paths: Iterable[Path], field: str) -> Iterator[str]:
    """The documents of files: one per line of ``.jsonl``, one per row of ``.parquet``, else one per file.

    Text is UTF-8, and may be packed (``.gz``, ``.bz2``, ``.xz``, ``.zst``). It stays as it is, line endings and a
    byte-order mark included; empty documents and blank lines are left out.

    Args:
        paths: files, read in this order.
        field: the key of the text in a line, or the column.

    Raises:
        DataError: a file cannot be read, is damaged, is not UTF-8, or has a line without text under ``field``.
    """
    for path in paths:
        check_name(path)
        try:
            yield from filter(None, _documents(path, field))
        except damage() as error:
            raise DataError(f"{path} is damaged: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def expand(patterns: tuple[str, ...]) -> list[Path]:
    """The files that the patterns name: in the order of the patterns, sorted within each, none twice.

    Raises:
        DataError: a file is missing, a pattern matches no file, or a path names something else than a file.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = expand_user(pattern)
        try:
            for file in _matches(pattern, path):
                found.setdefault(file.resolve(), file)
        except (OSError, ValueError) as error:  # too long, or characters that no path has
            words = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) else error
            raise DataError(f"cannot look for {pattern!r}: {words}") from error
    return list(found.values())


def expand_user(path: str) -> Path:
    """The path, with ``~`` and ``~name`` replaced by home directories.

    Raises:
        DataError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: there is no home directory of that user") from error


def _matches(pattern: str, path: Path) -> list[Path]:
    if path.is_dir():
        raise DataError(f"{pattern} is a directory: name its files, as in '{pattern.rstrip('/')}/**/*.txt'")
    if path.exists() and not path.is_file():
        raise DataError(f"{pattern} is a pipe, socket or device: text is read more than once, so give a regular file")
    # A file may have the characters of a pattern in its name.
    matches = [path] if path.exists() else map(Path, _glob(str(path)))
    files = sorted((match for match in matches if match.is_file()), key=Path.as_posix)
    if not files:
        problem = "no such file:"
        if path.is_symlink():
            problem = "a link to nothing or to itself:"
        elif glob.has_magic(pattern):
            problem = "no file matches"
        raise DataError(f"{problem} {pattern} (looked in {Path.cwd()})")
    return files


def _glob(pattern: str) -> Iterator[str]:
    """What the pattern matches. Unlike ``glob.glob``, ``**`` enters no directory twice, however links lead to it."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    rest = parts[place + 1 :] or ("*",)
    for base in glob.iglob(os.path.join(*parts[:place])) if place else ["."]:
        seen = set()
        for folder, inner, _ in os.walk(base, onerror=_raise, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                inner.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            inner[:] = [name for name in inner if not name.startswith(".")]
            yield from _glob(os.path.join(glob.escape(folder), *rest))


def _raise(error: OSError) -> None:
    raise error


def _documents(path: Path, field: str) -> Iterator[str]:
    name = unpacked_name(path).name.lower()
    if name.endswith((".jsonl", ".ndjson")):
        yield from _read_jsonl(path, field)
    elif name.endswith(".parquet"):
        if name != path.name.lower():
            raise DataError(f"{path}: a .parquet file is packed inside: unpack it")
        for value, where in read_column(path, field):
            yield check_text(value, where)
    else:
        with open_file(path) as file:
            yield _decode(file.read(), path)


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    offset = 0
    with open_file(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield _field_of(_decode(line, path, number, offset), field, where)
            offset += len(line)


def _field_of(line: str, field: str, where: str) -> str:
    if line.startswith(_BYTE_ORDER_MARK):
        raise DataError(f"{where}: not JSON: it begins with a byte-order mark; save the file as UTF-8 without one")
    try:
        # Only the text is used: no number is too large to pass over.
        record = json.loads(line, parse_int=_any_integer)
    except RecursionError as error:
        raise DataError(f"{where}: JSON that is nested too deep") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object with the key {field!r}, got {line.strip()[:40]}")
    if field not in record:
        raise DataError(f"{where}: no key {field!r}{did_you_mean(field, record)}; its keys: {first_few(record)}")
    return check_text(record[field], f"{where}: {field!r}")


def _any_integer(digits: str) -> int:
    return 0


def check_text(value: object, where: str) -> str:
    """``value`` if it is a string that UTF-8 can hold.

    Args:
        value: what a record holds.
        where: names the value in the error.

    Raises:
        DataError: it is not a string, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{where} is {type(value).__name__}, expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half of a surrogate pair at character {error.start}") from error
    return value


def _decode(data: bytes, path: Path, line: int = 1, offset: int = 0) -> str:
    """The text of a file from a line on, which begins at an offset."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: not UTF-8 at byte {offset + error.start} ({error.reason}): convert the file to UTF-8"
        ) from error
