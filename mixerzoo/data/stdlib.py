"""The running Python's standard library as documents: text that every machine has."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from mixerzoo.errors import DataError

_LEFT_OUT_DIRECTORIES = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
# Its text is the topics, which are documents of their own: kept, it would carry them across the split.
_LEFT_OUT_FILES = frozenset({"pydoc_data/topics.py"})


def stdlib_documents(max_bytes: int | None = None) -> Iterator[str]:
    """The ``*.py`` files in the order of their relative paths, then pydoc's topics by name.

    Tests, installed packages, empty files and files that are not UTF-8 are left out.

    Args:
        max_bytes: keep at most this many UTF-8 bytes. Documents are taken in the order of a hash of their
            names while they fit, so the sample is spread over the library and the same on every run.

    Raises:
        DataError: no document fits in ``max_bytes``, or this Python has no source files.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents: dict[str, Path | str] = {name: root / name for name in _python_files(root)}
    if not documents:
        raise DataError(f"no Python source files in {root}: this Python cannot serve as the 'stdlib' source")
    documents.update(_topics())
    if max_bytes is not None:
        documents = _sample(documents, max_bytes)
    for document in documents.values():
        text = _text(document)
        if text:
            yield text


def _python_files(root: Path) -> list[str]:
    """Relative posix paths, sorted."""
    found = []
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name not in _LEFT_OUT_DIRECTORIES]
        relative = Path(directory).relative_to(root)
        found += [(relative / name).as_posix() for name in files if name.endswith(".py")]
    return sorted(set(found) - _LEFT_OUT_FILES)


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return {f"topic {name}": topics[name] for name in sorted(topics)}


def _text(document: Path | str) -> str | None:
    """The document's text; None for a file that is not UTF-8."""
    if isinstance(document, str):
        return document
    try:
        return document.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {document}: {error.strerror}") from error


def _sample(documents: dict[str, Path | str], max_bytes: int) -> dict[str, Path | str]:
    # The names are hashed, not the contents: those decide the split, and a sample of small content hashes
    # would all be validation.
    kept = set()
    left = max_bytes
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        document = documents[name]
        if isinstance(document, Path) and document.stat().st_size > left:
            continue
        size = len((_text(document) or "").encode())
        if 0 < size <= left:
            kept.add(name)
            left -= size
    if not kept:
        raise DataError(f"no document of the standard library fits in max_bytes {max_bytes}: raise it")
    return {name: document for name, document in documents.items() if name in kept}
