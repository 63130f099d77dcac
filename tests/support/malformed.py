"""One way to spoil a checkpoint, and every kind of malformed file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: What a checkpoint is given to: `mixerzoo.load_checkpoint`, and commands.
COMMANDS = ("load", "eval", "generate", "import", "export")
DEEP = 100_000


@dataclass(frozen=True)
class Malformed:
    """One way to spoil a checkpoint.

    Attributes:
        name: says which.
        base: the sound checkpoint that it is made from: ``ours``, ``llama`` or ``qwen3``.
        spoil: changes a copy of it.
        may_pass: commands that may accept it, although they give something else than for the sound one.
    """

    name: str
    base: str
    spoil: Callable[[Path], None]
    may_pass: tuple[str, ...] = ()


# Whole files.

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a NUL": b"\0",
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "text": b'"text"',
    "half": b'{"a": [1, 2',
    "two": b"{} {}",
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP + b"0" + b"}" * DEEP,
    "shallow list": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
}


def file_cases(base: str, name: str, may_pass: tuple[str, ...] = ()) -> Iterator[Malformed]:
    """A file with other content, and other things in its place."""
    for what, content in CONTENTS.items():
        yield Malformed(f"{base}: {name}: {what}", base, lambda d, c=content: write(d / name, c), may_pass)
    yield Malformed(f"{base}: {name}: pipe", base, lambda d: replace(d / name, os.mkfifo), may_pass)
    yield Malformed(f"{base}: {name}: directory", base, lambda d: replace(d / name, os.mkdir), may_pass)
    yield Malformed(
        f"{base}: {name}: device", base, lambda d: replace(d / name, lambda p: p.symlink_to("/dev/zero")), may_pass
    )
    yield Malformed(
        f"{base}: {name}: loop", base, lambda d: replace(d / name, lambda p: p.symlink_to(p.name)), may_pass
    )
    yield Malformed(f"{base}: {name}: huge", base, lambda d: holes(d / name, 1 << 36), may_pass)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def holes(path: Path, size: int) -> None:
    """A file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
