"""JSON as it is written and read here: numbers that it has no word for, and files that hold something else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerzoo.errors import MixerzooError
from mixerzoo.files import read_bytes


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value


def to_json(content: Any) -> str:
    """Indented JSON with a final newline; a number that is not finite is null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


#: Far more than anybody writes, and few enough for every function that walks through them.
_MOST_LEVELS = 32


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
        raise error(f"{path}: is empty{end}")
    try:
        content = json.loads(data.decode("utf-8"))
    except ValueError as reason:
        raise error(f"{path}: damaged: {reason}{end}") from reason
    except RecursionError as reason:
        raise error(f"{path}: damaged: nested more than {_MOST_LEVELS} levels deep{end}") from reason
    if not isinstance(content, dict):
        raise error(f"{path}: damaged: expected a JSON object{end}")
    if _is_deep(content):
        raise error(f"{path}: damaged: nested more than {_MOST_LEVELS} levels deep{end}")
    return content


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(_MOST_LEVELS):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return False
    return True
