"""Divides documents into a training and a validation side that share no document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mixerzoo.data.progress import Meter, Progress
from mixerzoo.data.sources import Corpus, Documents
from mixerzoo.errors import DataError

Side = Literal["train", "validation"]

# Up to so many different documents are held out by their bytes; among more, hashes alone come near enough.
_FEW = 1 << 16
# How near to the share asked for documents that are held out by their bytes come.
_CLOSE = 0.1
# Bytes of a document that may be cut.
_LONG = 1024

_Assign = Callable[[bytes, str], Iterable[tuple[Side, str]]]


@dataclass(frozen=True)
class SplitCorpus:
    """Documents with the side that each is on; made by ``split_documents``.

    Attributes:
        fingerprint: changes when the text of either side does, and not with where the text lies.
        num_bytes: UTF-8 bytes of the documents read, on both sides.
    """

    fingerprint: str
    num_bytes: int
    _name: str
    _contents: str
    _parts: tuple[tuple[Documents, _Assign], ...]

    def __iter__(self) -> Iterator[tuple[Side, str]]:
        """Reads the source again, in its order.

        Raises:
            DataError: it no longer holds what it held when it was split.
        """
        contents = hashlib.sha256()
        for documents, assign in self._parts:
            for text in documents():
                digest = hashlib.sha256(text.encode()).digest()
                contents.update(digest)
                yield from assign(digest, text)
        if contents.hexdigest() != self._contents:
            raise DataError(f"{self._name} changed while it was being read: run again")

    def side(self, wanted: Side) -> Iterator[str]:
        """The documents of one side."""
        return (text for side, text in self if side == wanted)


def split_documents(corpus: Corpus, validation_fraction: float, report: Progress) -> SplitCorpus:
    """Reads all documents once to decide their sides.

    Where the source tells validation apart, training documents with the content of a validation document are
    dropped. Otherwise the SHA-256 of a document's content decides: equal documents land on the same side, whatever
    their order or number. Where the share of the bytes that the hashes pick is not near the one asked for, documents
    are held out in the order of their hashes until it is, and the one at the limit is cut in two near its end if it is
    long, at a line break if there is one nearby. Each side gets something; where all documents are equal, each is cut.

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
        for digest, size in self._digests(self._corpus.documents):
            lowest = digest if lowest is None else min(lowest, digest)
            highest = digest if highest is None else max(highest, digest)
            held += size if digest <= asked else 0
            if documents is not None:
                documents[digest] = _Copies(size, documents[digest].count + 1 if digest in documents else 1)
                if len(documents) > _FEW:
                    documents = None
        if lowest is None or highest is None:
            raise DataError(f"{self._corpus.name} holds no text")
        if lowest == highest:
            return self._result(["cut", fraction], (self._corpus.documents, lambda _, text: _cut(text, fraction)))
        few = None if self._corpus.whole_documents else documents
        if few is not None and not is_near(held / self._meter.done, fraction):
            return self._limited(*_limit_by_bytes(few, fraction))
        # Validation is every digest up to the limit, which is moved where it would leave a side empty.
        limit = max(lowest, asked)
        if limit >= highest:
            limit = (int.from_bytes(highest, "big") - 1).to_bytes(32, "big")
        return self._limited(limit, None)

    def _limited(self, limit: bytes, cut: tuple[bytes, float] | None) -> SplitCorpus:
        """Documents up to the limit are held out, and of one more the end."""

        def assign(digest: bytes, text: str) -> list[tuple[Side, str]]:
            if cut is not None and digest == cut[0]:
                return _cut(text, cut[1])
            return [("validation" if digest <= limit else "train", text)]

        rule = ["hash", limit.hex()] if cut is None else ["hash", limit.hex(), cut[0].hex(), cut[1]]
        return self._result(rule, (self._corpus.documents, assign))

    def explicit(self, validation: Documents) -> SplitCorpus:
        name = self._corpus.name
        held_out = frozenset(digest for digest, _ in self._digests(validation))
        if not held_out:
            raise DataError(f"{name}: the validation side holds no text")
        boundary = self._contents.hexdigest()
        count = kept = 0
        for digest, _ in self._digests(self._corpus.documents):
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

    def _digests(self, documents: Documents) -> Iterator[tuple[bytes, int]]:
        for text in documents():
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            self._contents.update(digest)
            self._meter.add(len(data))
            yield digest, len(data)

    def _result(self, rule: list[object], *parts: tuple[Documents, _Assign]) -> SplitCorpus:
        contents = self._contents.hexdigest()
        fingerprint = hashlib.sha256(json.dumps([contents, rule]).encode()).hexdigest()
        self._meter.finish()
        return SplitCorpus(fingerprint, self._meter.done, self._corpus.name, contents, parts)


class _Copies(NamedTuple):
    """Equal documents: the bytes of one, and how many there are."""

    size: int
    count: int


def _digest_at(fraction: float) -> bytes:
    return int(fraction * 2**256).to_bytes(32, "big")


def _limit_by_bytes(documents: dict[bytes, _Copies], fraction: float) -> tuple[bytes, tuple[bytes, float] | None]:
    """The digest up to which documents are held out, and the digest of one to cut with the share of its end.

    Args:
        documents: at least two.
        fraction: share of all bytes, at most a half.
    """
    target = fraction * sum(size * count for size, count in documents.values())
    limit, held = bytes(32), 0
    order = sorted(documents)
    for digest in order[:-1]:
        size, count = documents[digest]
        if held + size * count > target * (1 + _CLOSE):
            break
        limit, held = digest, held + size * count
    else:
        digest = order[-1]
        size, count = documents[digest]
    if held >= target * (1 - _CLOSE):
        return limit, None
    if size >= _LONG:
        return limit, (digest, (target - held) / (size * count))
    # Too short to cut: the nearer of with and without it, but no side may be empty.
    nearer = held + size * count - target < target - held
    return (digest if (nearer or held == 0) and digest != order[-1] else limit), None


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
