"""Turns a stream of documents into a stream of ids, in this process or in several, with the same ids in any case."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from mixerzoo.data.pieces import Piece
from mixerzoo.data.tokenizer import TextTokenizer

Label = TypeVar("Label")

# Text that is encoded at once: enough pieces for several cores, and encodings of about 200 MB.
_BATCH_CHARACTERS = 1 << 20


class Ids(NamedTuple):
    """The ids of several texts.

    Attributes:
        lengths: how many each has.
        data: all of them, one text after the other, as they are written.
    """

    lengths: list[int]
    data: bytes


class Encoder(Protocol):
    """Encodes batches of texts.

    Attributes:
        tokenizer: what it encodes with.
        characters: that a batch should have.
        ahead: batches that may be under way while one is waited for.
    """

    tokenizer: TextTokenizer
    characters: int
    ahead: int

    def submit(self, texts: Sequence[str]) -> Callable[[], Ids]:
        """Begins with a batch; calling what it gives waits for the ids."""
        ...


class Here:
    """Encodes in this process, on all cores that the ``tokenizers`` library takes.

    Args:
        tokenizer: what to encode with.
        dtype: numpy name of the ids' type.
    """

    ahead = 0

    def __init__(self, tokenizer: TextTokenizer, dtype: str) -> None:
        self.tokenizer = tokenizer
        self.characters = _BATCH_CHARACTERS
        self._dtype = dtype

    def submit(self, texts: Sequence[str]) -> Callable[[], Ids]:
        return lambda: to_ids(self.tokenizer, texts, self._dtype)


def to_ids(tokenizer: TextTokenizer, texts: Sequence[str], dtype: str) -> Ids:
    """The ids of some texts.

    Args:
        tokenizer: what to encode with.
        texts: any texts.
        dtype: numpy name of the ids' type.

    Raises:
        DataError: as `TextTokenizer.encode_batch`.
    """
    import numpy as np

    lengths, data = [], bytearray()
    for ids in tokenizer.encode_batch(texts):
        lengths.append(len(ids))
        data += np.array(ids, dtype=dtype).tobytes()
    return Ids(lengths, bytes(data))


class Encoded(NamedTuple, Generic[Label]):
    """A part of a document, and its ids.

    Attributes:
        label: that of the document.
        piece: the part of its text.
        ids: as they are written.
        num_tokens: how many ids.
        ends: whether the document ends with this part.
    """

    label: Label
    piece: Piece
    ids: memoryview
    num_tokens: int
    ends: bool


def encoded(documents: Iterable[tuple[Label, str]], encoder: Encoder) -> Iterator[Encoded[Label]]:
    """The parts of documents in their order, whatever the encoder does at the same time.

    It reads ahead of what it gives, as far as the encoder's batches go.

    Args:
        documents: each with a label, which its parts carry.
        encoder: what encodes them.

    Raises:
        DataError: a text cannot be encoded.
    """
    under_way: deque[tuple[list[_Part[Label]], Callable[[], Ids]]] = deque()
    for batch in _batches(documents, encoder):
        under_way.append((batch, encoder.submit([part.piece.encoded for part in batch])))
        if len(under_way) > encoder.ahead:
            yield from _finished(*under_way.popleft())
    while under_way:
        yield from _finished(*under_way.popleft())


class _Part(NamedTuple, Generic[Label]):
    label: Label
    piece: Piece
    ends: bool


def _batches(documents: Iterable[tuple[Label, str]], encoder: Encoder) -> Iterator[list[_Part[Label]]]:
    batch: list[_Part[Label]] = []
    size = 0
    for label, document in documents:
        pieces = encoder.tokenizer.pieces(document)
        piece: Piece | None = next(pieces)
        while piece is not None:
            following = next(pieces, None)
            batch.append(_Part(label, piece, following is None))
            size += len(piece.text)
            piece = following
            if size >= encoder.characters:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _finished(batch: list[_Part[Label]], wait: Callable[[], Ids]) -> Iterator[Encoded[Label]]:
    ids = wait()
    data = memoryview(ids.data)
    itemsize = len(data) // max(1, sum(ids.lengths))
    start = 0
    for part, length in zip(batch, ids.lengths, strict=True):
        stop = start + length * itemsize
        yield Encoded(part.label, part.piece, data[start:stop], length, part.ends)
        start = stop
