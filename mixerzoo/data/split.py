"""Divides documents into a training and a validation side that share no document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mixerzoo.data.progress import Meter, Progress
from mixerzoo.data.sources import Corpus, Documents
from mixerzoo.errors import DataError

Side = Literal["train", "validation"]

# Up to so many different documents are held out by their bytes; among more, hashes alone come near enough.
_FEW = 1 << 16
# How near to the share asked for documents that are held out by their bytes come.
_CLOSE = 0.1
# Bytes of a document that may be cut, and how many times its longest line it must be: one long line stays whole.
_LONG = 1024
_LINES = 20

_Assign = Callable[[bytes, str], Iterable[tuple[Side, str]]]


@dataclass(frozen=True)
class SplitCorpus:
    """Documents with the side that each is on; made by ``split_documents``.

    Attributes:
        fingerprint: changes when the text of either side does, and not with where the text lies.
        num_bytes: UTF-8 bytes of the documents read, on both sides.
        name: names the source in error messages.
        cut: the SHA-256 of each document that is cut in two, with the share of its end, which is held out.
    """

    fingerprint: str
    num_bytes: int
    name: str
    _contents: str
    _parts: tuple[tuple[Documents, _Assign], ...]
    cut: Mapping[bytes, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[Side, str]]:
        """Reads the source again, in its order.

        Raises:
            DataError: it no longer holds what it held when it was split.
        """
        return ((side, text) for _, side, text in self._read())

    def _read(self) -> Iterator[tuple[bytes, Side, str]]:
        """With the SHA-256 of the document that a text is, or is a part of."""
        contents = hashlib.sha256()
        for documents, assign in self._parts:
            for text in documents():
                digest = hashlib.sha256(text.encode()).digest()
                contents.update(digest)
                yield from ((digest, side, part) for side, part in assign(digest, text))
        if contents.hexdigest() != self._contents:
            raise DataError(f"{self.name} changed while it was being read: run again")

    def side(self, wanted: Side, *without: Collection[bytes]) -> Iterator[str]:
        """The documents of one side.

        Args:
            wanted: the side.
            *without: the SHA-256 of documents of which nothing is wanted.
        """
        return (
            text
            for digest, side, text in self._read()
            if side == wanted and not any(digest in each for each in without)
        )


def split_documents(corpus: Corpus, validation_fraction: float, report: Progress) -> SplitCorpus:
    """Reads all documents once to decide their sides.

    Where the source tells validation apart, training documents with the content of a validation document are
    dropped. Otherwise the SHA-256 of a document's content decides: equal documents land on the same side, whatever
    their order or number. Where the share of the bytes that the hashes pick is not near the one asked for, documents
    are held out in the order of their hashes until it is. One that is too large is cut in two near its end if it has
    many lines, at a line break if there is one nearby, else it is passed over. Each side gets something; where all
    documents are equal, each is cut.

    Args:
        corpus: the documents.
        validation_fraction: share of the bytes to hold out.
        report: progress callback, stage ``"read"``.

    Raises:
        DataError: a side is left without text.
    """
    scan = _Scan(corpus, report)
    if corpus.validation is not None:
        return scan.explicit(corpus.validation)
    return scan.hashed(validation_fraction)


def is_near(share: float, fraction: float) -> bool:
    """Whether a share held out is the one asked for, as well as whole documents allow."""
    return abs(share - fraction) <= 0.2 * fraction


class _Scan:
    """The pass over all documents; holds no text, and no list of hashes but those of few documents or of validation."""

    def __init__(self, corpus: Corpus, report: Progress) -> None:
        self._corpus = corpus
        self._contents = hashlib.sha256()
        self._meter = Meter(report, "read", 0)

    def hashed(self, fraction: float) -> SplitCorpus:
        lowest = highest = None
        asked = _digest_at(fraction)
        held = 0
        documents: dict[bytes, _Copies] | None = {}
        for digest, size, text in self._digests(self._corpus.documents):
            lowest = digest if lowest is None else min(lowest, digest)
            highest = digest if highest is None else max(highest, digest)
            held += size if digest <= asked else 0
            if documents is not None:
                known = documents.get(digest)
                documents[digest] = _Copies(size, _may_be_cut(text), 1) if known is None else known.again()
                if len(documents) > _FEW:
                    documents = None
        if lowest is None or highest is None:
            raise DataError(f"{self._corpus.name} holds no text")
        if lowest == highest:
            return self._result(
                ["cut", fraction],
                (self._corpus.documents, lambda _, text: _cut(text, fraction)),
                cut={lowest: fraction},
            )
        few = None if self._corpus.whole_documents else documents
        if few is not None and not is_near(held / self._meter.done, fraction):
            held_out, ends = _hold_out_by_bytes(few, fraction)
            return self._result(
                ["bytes", sorted(map(bytes.hex, held_out)), [[digest.hex(), share] for digest, share in ends.items()]],
                (
                    self._corpus.documents,
                    lambda digest, text: (
                        _cut(text, ends[digest])
                        if digest in ends
                        else [("validation" if digest in held_out else "train", text)]
                    ),
                ),
                cut=ends,
            )
        # Validation is every digest up to the limit, which is moved where it would leave a side empty.
        limit = max(lowest, asked)
        if limit >= highest:
            limit = (int.from_bytes(highest, "big") - 1).to_bytes(32, "big")
        return self._result(
            ["hash", limit.hex()],
            (self._corpus.documents, lambda digest, text: [("validation" if digest <= limit else "train", text)]),
        )

    def explicit(self, validation: Documents) -> SplitCorpus:
        name = self._corpus.name
        held_out = frozenset(digest for digest, *_ in self._digests(validation))
        if not held_out:
            raise DataError(f"{name}: the validation side holds no text")
        boundary = self._contents.hexdigest()
        count = kept = 0
        for digest, *_ in self._digests(self._corpus.documents):
            count += 1
            kept += digest not in held_out
        if not kept:
            raise DataError(
                f"{name}: all {count} training documents are validation documents too: train on others"
                if count
                else f"{name}: the training side holds no text"
            )
        return self._result(
            ["explicit", boundary],
            (validation, lambda _, text: [("validation", text)]),
            (
                self._corpus.documents,
                lambda digest, text: [] if digest in held_out else [("train", text)],
            ),
        )

    def _digests(self, documents: Documents) -> Iterator[tuple[bytes, int, str]]:
        for text in documents():
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            self._contents.update(digest)
            self._meter.add(len(data))
            yield digest, len(data), text

    def _result(
        self, rule: list[object], *parts: tuple[Documents, _Assign], cut: Mapping[bytes, float] | None = None
    ) -> SplitCorpus:
        contents = self._contents.hexdigest()
        fingerprint = hashlib.sha256(json.dumps([contents, rule]).encode()).hexdigest()
        self._meter.finish()
        return SplitCorpus(fingerprint, self._meter.done, self._corpus.name, contents, parts, cut or {})


class _Copies(NamedTuple):
    """Equal documents: the bytes of one, whether it may be cut, and how many there are."""

    size: int
    long: bool
    copies: int

    def again(self) -> _Copies:
        return self._replace(copies=self.copies + 1)

    @property
    def total(self) -> int:
        return self.size * self.copies


def _may_be_cut(text: str) -> bool:
    return len(text) >= _LONG and max(map(len, text.split("\n"))) * _LINES <= len(text)


def _digest_at(fraction: float) -> bytes:
    return int(fraction * 2**256).to_bytes(32, "big")


def _hold_out_by_bytes(documents: dict[bytes, _Copies], fraction: float) -> tuple[set[bytes], dict[bytes, float]]:
    """The digests of the documents that are held out, and of one to cut, with the share of its end.

    Args:
        documents: at least two.
        fraction: share of all bytes, at most a half.
    """
    target = fraction * sum(document.total for document in documents.values())
    held: set[bytes] = set()
    size = 0
    too_large = []
    for digest in sorted(documents):
        document = documents[digest]
        if size >= target * (1 - _CLOSE):
            return held, {}
        if size + document.total <= target * (1 + _CLOSE):
            held.add(digest)
            size += document.total
        elif document.long:
            return held, {digest: (target - size) / document.total}
        else:
            too_large.append(digest)
    # Whole documents alone: one more if that is nearer, or if there is none yet.
    nearest = min(too_large, key=lambda digest: (documents[digest].total, digest))
    if not held or size + documents[nearest].total - target < target - size:
        held.add(nearest)
    return held, {}


def _cut(text: str, fraction: float) -> list[tuple[Side, str]]:
    """Head and tail of a text; the tail is about ``fraction`` of its bytes."""
    if len(text) < 2:
        raise DataError(f"the only document is {text!r}: too little to divide into training and validation")
    data = text.encode()

    def place(share: float) -> int:
        """Characters before the last ``share`` of the bytes."""
        number = len(data[: round(len(data) * (1 - share))].decode(errors="ignore"))
        return min(max(1, number), len(text) - 1)

    wanted = place(fraction)
    low, high = place(fraction * (1 + _CLOSE)), place(fraction * (1 - _CLOSE))
    before = text.rfind("\n", low - 1, wanted) + 1
    after = text.find("\n", wanted, high) + 1
    lines = [cut for cut in (before, after) if cut]
    cut = min(lines, key=lambda cut: abs(cut - wanted)) if lines else wanted
    return [("train", text[:cut]), ("validation", text[cut:])]
