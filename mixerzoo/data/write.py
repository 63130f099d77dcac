"""Writes the tokens of one side, and counts what the yardsticks need, in one pass over its documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mixerzoo.data.entry import SideCounts
from mixerzoo.data.pieces import Piece
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.yardsticks import BOUNDARY, count_bigrams

if TYPE_CHECKING:
    import numpy as np

# Text held before it is encoded: enough pieces for several cores, and encodings of about 200 MB.
_BATCH_CHARACTERS = 1 << 20


@contextmanager
def write_side(path: Path, tokenizer: TextTokenizer, dtype: str, text_path: Path | None = None) -> Iterator[SideWriter]:
    """A writer whose files are complete when the block ends without an error.

    Args:
        path: the file of token ids.
        tokenizer: makes them.
        dtype: numpy name of the ids' type.
        text_path: a file for the UTF-8 text of the documents, joined; None to write none.
    """
    with ExitStack() as files:
        ids = files.enter_context(path.open("wb"))
        text = None if text_path is None else files.enter_context(text_path.open("wb"))
        writer = SideWriter(ids, text, tokenizer, dtype)
        yield writer
        writer.flush()


class SideWriter:
    """Takes documents and writes them batch by batch.

    Attributes:
        bigrams: ``count_bigrams`` of what is written, with a boundary before, between and after documents.
    """

    def __init__(self, ids: BinaryIO, text: BinaryIO | None, tokenizer: TextTokenizer, dtype: str) -> None:
        self.bigrams: np.ndarray[Any, Any] = count_bigrams(b"")
        self._ids = ids
        self._text = text
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._batch: list[Piece | None] = []  # pieces of documents; None ends a document
        self._batch_size = 0
        self._last_byte = BOUNDARY
        self._num_tokens = self._num_bytes = self._num_documents = 0

    def add(self, document: str) -> None:
        """Takes one document."""
        for piece in self._tokenizer.pieces(document):
            self._batch.append(piece)
            self._batch_size += len(piece.text)
            if self._batch_size >= _BATCH_CHARACTERS:
                self.flush()
        self._batch.append(None)
        self._num_documents += 1

    def flush(self) -> None:
        """Writes what was taken so far."""
        import numpy as np

        texts = [piece.encoded for piece in self._batch if piece is not None]
        encoded = iter(self._tokenizer.encode_batch(texts))
        ids: list[int] = []
        for piece in self._batch:
            ids += [self._tokenizer.end_of_text_id] if piece is None else next(encoded)
        self._ids.write(np.array(ids, dtype=self._dtype).tobytes())
        self._num_tokens += len(ids)

        data = [None if piece is None else piece.text.encode() for piece in self._batch]
        if self._text is not None:
            self._text.writelines(filter(None, data))
        self._num_bytes += sum(map(len, filter(None, data)))
        stream = self._last_byte + b"".join(BOUNDARY if piece is None else piece for piece in data)
        self.bigrams += count_bigrams(stream)
        self._last_byte = stream[-1:]
        self._batch.clear()
        self._batch_size = 0

    def counts(self) -> SideCounts:
        """What was written."""
        return SideCounts(self._num_tokens, self._num_bytes, self._num_documents)
