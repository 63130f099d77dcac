"""What two simple models need for the validation text: figures to hold a trained model's against.

A language model over documents also predicts where each one ends, so the bigram model does too: its 257
symbols are the byte values and a boundary that stands before, between and after documents.
"""

from __future__ import annotations

import lzma
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.data.entry import PreparedData
from mixerzoo.data.machine import once_a_launch
from mixerzoo.data.progress import silent
from mixerzoo.data.sealed import read_sealed_json, to_sealed_json
from mixerzoo.errors import DataError
from mixerzoo.files import write_text

if TYPE_CHECKING:
    import numpy as np

BOUNDARY = b"\xff"
"""Stands for the boundary: a byte that UTF-8 never uses, so that counts fit a table of 256 x 256."""

_SYMBOLS = 257
# Added to every count. Small, since of 257 x 257 pairs text uses few; Laplace's 1 drowns a small text.
_SMOOTHING = 0.1
_CHUNK = 1 << 20
#: Bytes of text that xz is given, for it takes a second a megabyte. So far its strongest preset looks back.
_MOST = 1 << 26
_NAMES = ("bigram_bits_per_byte", "xz_bits_per_byte")


def yardsticks(prepared: PreparedData) -> dict[str, float]:
    """Bits per byte of validation text under two simple models.

    Computed once and kept in the cache entry, if that can be written; under torchrun by one process of each machine.

    Args:
        prepared: from ``prepare``.

    Returns:
        ``bigram_bits_per_byte``: a byte bigram model, counts of the training side plus 0.1 each, which also
        predicts the end of every document.
        ``xz_bits_per_byte``: the validation documents joined, compressed by xz at its strongest preset.
        ``xz_bytes``: of how many bytes at the beginning of them that is the figure; missing where it is of all.

    Raises:
        DataError: the cache entry is gone or damaged, or memory does not suffice. What was trained is not concerned:
            save it first.
    """
    path = prepared.directory / "yardsticks.json"
    known = _read(path)
    if known is not None:
        return known
    return once_a_launch(("yardsticks", str(path)), lambda: _make(prepared, path), silent)


def _make(prepared: PreparedData, path: Path) -> dict[str, float]:
    known = _read(path)
    if known is None:
        try:
            known = _compute(prepared)
        except (OSError, ValueError, EOFError, MemoryError, lzma.LZMAError) as error:
            raise DataError(
                f"cannot compute yardsticks from {prepared.directory} ({error}): prepare the data again"
            ) from error
        # Kept to save time alone: where nothing can be written, they are computed each time.
        with suppress(OSError):
            write_text(path, to_sealed_json(known))
    return known


def count_bigrams(stream: bytes) -> np.ndarray[Any, Any]:
    """Counts of adjacent bytes, int64 of shape ``[256, 256]`` (first, second).

    Args:
        stream: UTF-8 text, with ``BOUNDARY`` before, between and after documents.
    """
    import numpy as np

    symbols = np.frombuffer(stream, dtype=np.uint8).astype(np.int64)
    return np.bincount(symbols[:-1] * 256 + symbols[1:], minlength=256 * 256).reshape(256, 256)


def save_bigrams(path: Path, train: np.ndarray[Any, Any], validation: np.ndarray[Any, Any]) -> None:
    """Writes the counts of both sides for ``yardsticks``.

    Args:
        path: a .npy file.
        train: ``count_bigrams`` of the training documents.
        validation: ``count_bigrams`` of the validation documents.
    """
    import numpy as np

    np.save(path, np.stack([train, validation]))


def _read(path: Path) -> dict[str, float] | None:
    try:
        known = read_sealed_json(path)
        figures = {name: float(known[name]) for name in _NAMES}
        return figures | ({"xz_bytes": int(known["xz_bytes"])} if "xz_bytes" in known else {})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there yet, or damaged: it is computed again


def _compute(prepared: PreparedData) -> dict[str, float]:
    import numpy as np

    train, validation = np.load(prepared.directory / "bigrams.npy")
    smoothed = train + _SMOOTHING
    totals = train.sum(axis=1, keepdims=True) + _SMOOTHING * _SYMBOLS
    bits = -(validation * np.log2(smoothed / totals)).sum()

    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    num_bytes = prepared.validation.num_bytes
    given = min(num_bytes, _MOST)
    size, left = 0, given
    with (prepared.directory / "validation.txt").open("rb") as file:
        while chunk := file.read(min(_CHUNK, left)):
            size += len(compressor.compress(chunk))
            left -= len(chunk)
    size += len(compressor.flush())
    figures = dict(zip(_NAMES, (float(bits) / num_bytes, 8 * size / given), strict=True))
    return figures | ({} if given == num_bytes else {"xz_bytes": given})
