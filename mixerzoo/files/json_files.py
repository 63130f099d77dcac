"""JSON as it is written and read here: numbers that it has no word for, and files that hold something else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerzoo.errors import MixerzooError
from mixerzoo.files.atomic import read_bytes


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def to_json(content: Any) -> str:
    """Indented JSON with a final newline; a number that is not finite is null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


_TEXT_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
#: Far more than anybody writes, and few enough for every function that walks through them.
MOST_LEVELS = 32


def read_object(path: Path, error: type[MixerzooError], advice: str = "", most: int = 1 << 30) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        error: the kind of error.
        advice: what to do, for the end of its message.
        most: bytes that it may have.

    Raises:
        error: the file cannot be read, or holds something else.
    """
    end = f"; {advice}" if advice else ""
    try:
        data = read_bytes(path, most)
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror or reason}{end}") from reason
    if not data.strip(b"\0 \t\r\n"):
        raise error(f"{path}: damaged: it is empty{end}")
    try:
        content = json.loads(data.decode("utf-8"))
    except ValueError as reason:
        raise error(f"{path}: damaged: {reason}{end}") from reason
    except RecursionError as reason:
        raise error(f"{path}: damaged: nested more than {MOST_LEVELS} levels deep{end}") from reason
    if not isinstance(content, dict):
        raise error(f"{path}: damaged: expected a JSON object{end}")
    if is_deep(content):
        raise error(f"{path}: damaged: nested more than {MOST_LEVELS} levels deep{end}")
    return content


def is_deep(content: Any) -> bool:
    """Whether a value is nested more than `MOST_LEVELS` levels deep, or contains itself."""
    level = [content]
    for _ in range(MOST_LEVELS + 1):
        level = [part for part in level if isinstance(part, Mapping | list | tuple)]
        if not level:
            return False
        level = [inner for part in level for inner in (part.values() if isinstance(part, Mapping) else part)]
    return True


def deep_line(text: str) -> int:
    """The line of a JSON text, counted from 1, in which it is first nested more than `MOST_LEVELS` levels deep."""
    level = 0
    for found in _TEXT_OR_BRACKET.finditer(text):
        level += 1 if found[0] in "[{" else -1 if found[0] in "]}" else 0
        if level > MOST_LEVELS:
            return text.count("\n", 0, found.start()) + 1
    return 1
