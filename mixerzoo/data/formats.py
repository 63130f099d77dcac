"""Opens the files that text comes in: compressed ones, tables, and what is refused by its name."""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mixerzoo.errors import DataError, did_you_mean

_CHUNK = 1 << 16

_ARCHIVE = "an archive: unpack it and name the files in it"
_TABLE = "a table or tree of records, not text: make it .jsonl, or read it with source 'hf' (path: {}, data_files: …)"
_REFUSED = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"), _ARCHIVE),
    ".json": _TABLE.format("json"),
    ".csv": _TABLE.format("csv"),
    ".tsv": _TABLE.format("csv"),
    **dict.fromkeys((".arrow", ".feather"), _TABLE.format("arrow")),
    **dict.fromkeys((".br", ".lz4", ".lzo", ".z", ".lzma", ".sz"), "compressed in a way that is not read: unpack it"),
    **dict.fromkeys((".pdf", ".docx", ".odt", ".rtf", ".epub", ".xlsx"), "no plain text: convert it"),
}


def open_file(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name says that it is packed.

    Raises:
        DataError: what unpacks it is not installed.
        OSError: it cannot be opened.
    """
    packed = _PACKED.get(path.suffix.lower())
    return path.open("rb") if packed is None else io.BufferedReader(_Unpacked(path, packed(path)), _CHUNK)


def unpacked_name(path: Path) -> Path:
    """The path without the suffix that says how the file is packed."""
    return path.with_suffix("") if path.suffix.lower() in _PACKED else path


def check_name(path: Path) -> None:
    """Refuses files whose name says that they hold no text.

    Raises:
        DataError: it does; the message says what to do.
    """
    suffix = unpacked_name(path).suffix.lower()
    if suffix in _REFUSED:
        raise DataError(f"{path}: a {suffix} file is {_REFUSED[suffix]}")


def damage() -> tuple[type[Exception], ...]:
    """What the libraries raise that unpack, where a file is damaged or cut short."""
    zstandard = sys.modules.get("zstandard")
    return (EOFError, zlib.error, lzma.LZMAError, *(() if zstandard is None else (zstandard.ZstdError,)))


def read_column(path: Path, column: str) -> Iterator[tuple[object, str]]:
    """The values of a column of a .parquet file, each with the words that name it in an error.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or has no such column.
        OSError: it cannot be opened.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise _missing(path, "pyarrow") from error
    number = 0
    with path.open("rb") as file:
        try:
            table = parquet.ParquetFile(file)
            columns = table.schema_arrow.names
            if column not in columns:
                near = did_you_mean(column, columns)
                raise DataError(f"{path}: no column {column!r}{near}; its columns: {first_few(columns)}")
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield value, f"{path}, row {number}: {column!r}"
        except ArrowException as error:
            raise DataError(f"{path} is damaged or no .parquet file: {error}") from error


def first_few(names: Any) -> str:
    """Some names to show, in quotes."""
    shown = [repr(name)[:80] for name in list(names)[:10]]
    return ", ".join([*shown, "…"] if len(names) > len(shown) else shown) or "none"


class _Unpacked(io.RawIOBase):
    """The content of a packed file: several frames, one after the other, of which each is whole.

    The readers of the standard library take what is damaged after the first frame for its end.
    """

    def __init__(self, path: Path, new_frame: Callable[[], Any]) -> None:
        """
        Args:
            path: the file.
            new_frame: makes an object with ``decompress``, ``eof`` and ``unused_data``, as ``bz2`` and others have.
        """
        self._file = path.open("rb")
        self._new_frame = new_frame
        self._frame = new_frame()
        self._begun = False
        self._rest = b""  # unpacked, not yet given
        self._next = b""  # packed, of the next frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            packed = self._next or self._file.read(_CHUNK)
            self._next = b""
            if not packed:
                if self._begun:
                    raise EOFError("the file ends within a frame")
                return 0
            if not self._begun and not (packed := packed.lstrip(b"\0")):
                continue  # padding
            self._rest = self._frame.decompress(packed)
            self._begun = not self._frame.eof
            if self._frame.eof:
                self._next = self._frame.unused_data
                self._frame = self._new_frame()
        given = self._rest[: len(buffer)]
        self._rest = self._rest[len(given) :]
        buffer[: len(given)] = given
        return len(given)

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstandard(path: Path) -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError as error:
        raise _missing(path, "zstandard") from error
    return zstandard.ZstdDecompressor().decompressobj


def _missing(path: Path, package: str) -> DataError:
    return DataError(f'{path}: reading it needs {package}, which is not installed: pip install "mixerzoo[data]"')


# What unpacks a frame.
_PACKED: dict[str, Callable[[Path], Callable[[], Any]]] = {
    ".gz": lambda path: lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS),
    ".bz2": lambda path: bz2.BZ2Decompressor,
    ".xz": lambda path: lzma.LZMADecompressor,
    ".zst": _zstandard,
}
