"""Sizes and checksums of a directory's files, written beside them, and held against them when they are read.

::

    manifest.json   {"files": {"model.safetensors": {"bytes": 123, "sha256": "…"}, …}, and what else is recorded}
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mixerzoo.errors import CheckpointError
from mixerzoo.files import atomic as files
from mixerzoo.files.json_files import read_object, to_json

MANIFEST_FILE = "manifest.json"


def write_manifest(
    directory: Path,
    names: Collection[str],
    *,
    coming: Mapping[str, str] = MappingProxyType({}),
    sums: Mapping[str, str] = MappingProxyType({}),
    **record: Any,
) -> None:
    """Record files as they are now.

    Args:
        directory: holds them.
        names: of the files; those that are not there are left out.
        coming: files that are written next: name → text.
        sums: SHA-256 of files of which whoever wrote them knows it: name → hexadecimal.
        **record: what else to record.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.
    """
    entries = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sums.get(name) or files.sha256(directory / name)}
        for name in sorted(names)
        if (directory / name).is_file()
    }
    for name, text in coming.items():
        data = text.encode("utf-8")
        entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files.write_text(directory / MANIFEST_FILE, to_json({**record, "files": entries}))


def read_manifest(directory: Path) -> dict[str, Any]:
    """What `write_manifest` recorded.

    Args:
        directory: has a manifest.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    path = directory / MANIFEST_FILE
    content = read_object(path, CheckpointError, "restore it, or delete it and nothing is checked")
    entries = content.get("files")
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in entries.values()
    ):
        raise CheckpointError(f"{path}: damaged: it does not list files with their bytes and sha256; restore it")
    return content


def difference(directory: Path, entries: Mapping[str, Any]) -> str | None:
    """How files differ from what a manifest says of them.

    Args:
        directory: holds them.
        entries: name → ``bytes`` and ``sha256``.

    Returns:
        The first file that differs, and how; None: none does.

    Raises:
        CheckpointError: a file is there and cannot be read, which says nothing of what it holds.
    """
    for name, entry in entries.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if not size and entry["bytes"]:
                return f"{path} is empty"
            if size != entry["bytes"]:
                return f"{path} has {size:,} bytes, and {entry['bytes']:,} were written"
            if files.sha256(path) != entry["sha256"]:
                return f"{path} is not what was written: its checksum differs"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return None


def check_files(directory: str | Path, names: Collection[str] | None = None) -> None:
    """Refuse files other than those that were written.

    Args:
        directory: one without a manifest passes.
        names: the files to look at; default: all that the manifest lists.

    Raises:
        CheckpointError: names the file, or the manifest cannot be read.
    """
    directory = Path(directory)
    if not (directory / MANIFEST_FILE).exists():
        return
    entries = read_manifest(directory)["files"]
    found = difference(directory, {name: entry for name, entry in entries.items() if names is None or name in names})
    if found is not None:
        raise CheckpointError(
            f"{found} (by {MANIFEST_FILE}); restore the file, or delete {MANIFEST_FILE} if it was changed on purpose"
        )
