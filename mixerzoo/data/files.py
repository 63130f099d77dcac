"""Reads documents from local text and JSON-lines files."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mixerzoo.errors import DataError, did_you_mean


def read_files(paths: Iterable[Path], field: str) -> Iterator[str]:
    """The documents of UTF-8 files: one per line of a ``.jsonl`` file, else one per file.

    Line endings stay as they are; empty documents and blank lines are left out.

    Args:
        paths: files, read in this order.
        field: the key of the text in a line of a ``.jsonl`` file.

    Raises:
        DataError: a file cannot be read, is not UTF-8, or has a line without text under ``field``.
    """
    for path in paths:
        try:
            if path.suffix == ".jsonl":
                yield from _read_jsonl(path, field)
            elif text := _decode(path.read_bytes(), str(path), 0):
                yield text
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def expand(patterns: tuple[str, ...]) -> list[Path]:
    """The files that the patterns name: in the order of the patterns, sorted within each, none twice.

    Raises:
        DataError: a file is missing, a pattern matches no file, or a path is a directory.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            raise DataError(f"{pattern} is a directory: name its files, as in '{pattern.rstrip('/')}/**/*.txt'")
        # A file may have the characters of a pattern in its name.
        matches = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
        files = sorted((match for match in matches if match.is_file()), key=Path.as_posix)
        if not files:
            problem = "no file matches" if glob.has_magic(pattern) else "no such file:"
            raise DataError(f"{problem} {pattern} (looked in {Path.cwd()})")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                if text := _field_of(_decode(line, where, offset), field, where):
                    yield text
            offset += len(line)


def _field_of(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object with the key {field!r}, got {line.strip()[:40]}")
    if field not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{where}: no key {field!r}{did_you_mean(field, record)}; its keys: {keys}")
    return check_text(record[field], f"{where}: {field!r}")


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


def _decode(data: bytes, where: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {offset + error.start} ({error.reason}): convert the file to UTF-8"
        ) from error
