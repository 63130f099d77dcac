"""Writes the tokens of one side, and counts what the yardsticks need, in one pass over its documents."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mixerzoo.data.encoding import Encoded, to_ids
from mixerzoo.data.entry import SideCounts
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.yardsticks import BOUNDARY, count_bigrams

if TYPE_CHECKING:
    import numpy as np

# Text whose bigrams are counted at once.
_CHUNK = 1 << 20


@contextmanager
def write_side(
    path: Path,
    tokenizer: TextTokenizer,
    dtype: str,
    text_path: Path | None = None,
    *,
    max_documents: int | None = None,
    max_tokens: int | None = None,
) -> Iterator[SideWriter]:
    """A writer whose files are complete when the block ends without an error.

    Args:
        path: the file of token ids.
        tokenizer: made them.
        dtype: numpy name of the ids' type.
        text_path: a file for the UTF-8 text of the documents, joined; None to write none.
        max_documents: documents after which the side is full; None: no end.
        max_tokens: likewise, ends of text counted. The document that is under way then is cut.
    """
    with ExitStack() as files:
        ids = files.enter_context(path.open("wb"))
        text = None if text_path is None else files.enter_context(text_path.open("wb"))
        writer = SideWriter(ids, text, tokenizer, dtype, max_documents, max_tokens)
        yield writer
        writer.flush()


class SideWriter:
    """Takes the parts of documents in their order and writes them.

    Attributes:
        bigrams: ``count_bigrams`` of what is written, with a boundary before, between and after documents.
        full: whether a limit is reached, so that nothing more is taken.
    """

    def __init__(
        self,
        ids: BinaryIO,
        text: BinaryIO | None,
        tokenizer: TextTokenizer,
        dtype: str,
        max_documents: int | None,
        max_tokens: int | None,
    ) -> None:
        self.bigrams: np.ndarray[Any, Any] = count_bigrams(b"")
        self.full = False
        self._ids, self._text, self._tokenizer, self._dtype = ids, text, tokenizer, dtype
        self._end = self._to_bytes(tokenizer.end_of_text_id)
        self._max_documents, self._max_tokens = max_documents, max_tokens
        self._stream = bytearray(BOUNDARY)
        self._within = False
        self._num_tokens = self._num_bytes = self._num_documents = 0

    def write(self, part: Encoded[Any]) -> int:
        """Takes a part of a document.

        Returns:
            How many tokens were written.
        """
        if self.full:
            return 0
        before = self._num_tokens
        # A document always has room for its end.
        if self._max_tokens is None or before + part.num_tokens < self._max_tokens:
            self._put(part.piece.text, part.ids, part.num_tokens, ends=part.ends)
        else:
            self._put_what_fits(part, self._max_tokens - before - 1)
        reached = self._num_documents == self._max_documents or self._num_tokens == self._max_tokens
        self.full = self.full or reached
        return self._num_tokens - before

    def _put_what_fits(self, part: Encoded[Any], room: int) -> None:
        """Cut a document to the longest beginning of its part that takes no more than ``room`` tokens."""
        encoded = part.piece.encoded
        number = bisect_right(range(1, len(encoded)), room, key=lambda n: len(self._tokenizer.encode(encoded[:n])))
        if number or self._within:
            ids = to_ids(self._tokenizer, [encoded[:number]], self._dtype)
            text = part.piece.text[: len(part.piece.text) - len(encoded) + number] if number else ""
            self._put(text, ids.data, ids.lengths[0], ends=True)
        self.full = True

    def _put(self, text: str, ids: bytes | memoryview, num_tokens: int, *, ends: bool) -> None:
        self._ids.write(ids)
        self._num_tokens += num_tokens
        data = text.encode()
        if self._text is not None:
            self._text.write(data)
        self._num_bytes += len(data)
        self._stream += data
        self._within = not ends
        if ends:
            self._ids.write(self._end)
            self._stream += BOUNDARY
            self._num_tokens += 1
            self._num_documents += 1
        if len(self._stream) > _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Counts what was taken so far."""
        self.bigrams += count_bigrams(bytes(self._stream))
        del self._stream[:-1]

    def counts(self) -> SideCounts:
        """What was written."""
        return SideCounts(self._num_tokens, self._num_bytes, self._num_documents)

    def _to_bytes(self, token: int) -> bytes:
        import numpy as np

        return np.array([token], dtype=self._dtype).tobytes()
