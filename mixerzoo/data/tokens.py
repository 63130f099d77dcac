"""Token ids in a file, read as they are asked for."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.errors import DataError

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 20


class TokenFile:
    """One-dimensional ids in a file: has a length, gives numpy arrays for slices, and ``np.asarray`` reads all.

    The file is read and not mapped into memory: a mapped one that becomes shorter ends the process without a word.

    Attributes:
        path: the file.
        dtype: numpy type of the ids.
        shape: ``(number of ids,)``.
    """

    def __init__(self, path: Path, dtype: str, num_tokens: int) -> None:
        """Opens the file; what is deleted or replaced afterwards is still read as it was.

        Args:
            path: holds at least the ids.
            dtype: numpy name of their type.
            num_tokens: how many there are.

        Raises:
            DataError: it cannot be opened.
        """
        import numpy as np

        self.path = path
        self.dtype = np.dtype(dtype)
        self.shape = (num_tokens,)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def nbytes(self) -> int:
        """Bytes of all ids."""
        return self.shape[0] * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """An id, or a read-only array [N] for a slice.

        Raises:
            IndexError: there is no such id.
            DataError: the file has become shorter, or cannot be read.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step > 0:
                return self._read(start, max(start, stop))[::step]
            return self._read(stop + 1, max(stop, start) + 1)[::-1][::-step]
        place = range(len(self))[index]
        return self._read(place, place + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("the ids are in a file: an array of them is a copy")
        ids: np.ndarray[Any, Any] = self[:]
        return ids if dtype is None else ids.astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker process: the name of the file, not its content.
        return TokenFile, (self.path, self.dtype.str, len(self))

    def _read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        import numpy as np

        itemsize = self.dtype.itemsize
        data = bytearray()
        try:
            while missing := (stop - start) * itemsize - len(data):
                part = os.pread(self._descriptor, missing, start * itemsize + len(data))
                if not part:
                    raise DataError(
                        f"{self.path} has become shorter while it was in use: something else changed the prepared "
                        "text; run again"
                    )
                data += part
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        ids = np.frombuffer(data, dtype=self.dtype)
        ids.flags.writeable = False
        return ids
