"""JSON files that carry a checksum of themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_SEAL = "sha256_of_the_rest"


def to_sealed_json(content: dict[str, Any]) -> str:
    """The text of a file that `read_sealed_json` takes.

    Args:
        content: of strings, numbers, lists and dictionaries with string keys.
    """
    return json.dumps(content | {_SEAL: _checksum(content)}, indent=2) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """What was written with `to_sealed_json`.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict) or content.pop(_SEAL, None) != _checksum(content):
        raise ValueError("its checksum is wrong")
    return content


def _checksum(content: dict[str, Any]) -> str:
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
