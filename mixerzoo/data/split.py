"""Divides documents into a training and a validation side that share no document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mixerzoo.data.progress import Meter, Progress
from mixerzoo.data.sources import Corpus, Documents
from mixerzoo.errors import DataError

Side = Literal["train", "validation"]

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
    dropped. Otherwise the SHA-256 of a document's content decides: equal documents land on the same side,
    whatever their order or number. Each side gets at least one document; where all documents are equal, each
    is cut in two near its end, at a line break if there is one nearby.

    Args:
        corpus: the documents.
        validation_fraction: share of the hashes that means validation.
        report: progress callback, stage ``"read"``.

    Raises:
        DataError: a side is left without text.
    """
    scan = _Scan(corpus, report)
    if corpus.validation is not None:
        return scan.explicit(corpus.validation)
    return scan.hashed(validation_fraction)


class _Scan:
    """The pass over all documents; holds no text and, unless validation is explicit, no list of hashes."""

    def __init__(self, corpus: Corpus, report: Progress) -> None:
        self._corpus = corpus
        self._contents = hashlib.sha256()
        self._meter = Meter(report, "read", 0)

    def hashed(self, fraction: float) -> SplitCorpus:
        lowest = highest = None
        for digest in self._digests(self._corpus.documents):
            lowest = digest if lowest is None else min(lowest, digest)
            highest = digest if highest is None else max(highest, digest)
        if lowest is None or highest is None:
            raise DataError(f"{self._corpus.name} holds no text")
        documents = self._corpus.documents
        if lowest == highest:
            return self._result(["cut", fraction], (documents, lambda _, text: _cut(text, fraction)))
        # Validation is every digest up to the limit, which is moved where it would leave a side empty.
        limit = max(lowest, int(fraction * 2**256).to_bytes(32, "big"))
        if limit >= highest:
            limit = (int.from_bytes(highest, "big") - 1).to_bytes(32, "big")
        return self._result(
            ["hash", limit.hex()],
            (documents, lambda digest, text: [("validation" if digest <= limit else "train", text)]),
        )

    def explicit(self, validation: Documents) -> SplitCorpus:
        name = self._corpus.name
        held_out = frozenset(self._digests(validation))
        if not held_out:
            raise DataError(f"{name}: the validation side holds no text")
        boundary = self._contents.hexdigest()
        count = kept = 0
        for digest in self._digests(self._corpus.documents):
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

    def _digests(self, documents: Documents) -> Iterator[bytes]:
        for text in documents():
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            self._contents.update(digest)
            self._meter.add(len(data))
            yield digest

    def _result(self, rule: list[object], *parts: tuple[Documents, _Assign]) -> SplitCorpus:
        contents = self._contents.hexdigest()
        fingerprint = hashlib.sha256(json.dumps([contents, rule]).encode()).hexdigest()
        self._meter.finish()
        return SplitCorpus(fingerprint, self._meter.done, self._corpus.name, contents, parts)


def _cut(text: str, fraction: float) -> list[tuple[Side, str]]:
    """Head and tail of a text; the tail is about ``fraction`` of its characters."""
    if len(text) < 2:
        raise DataError(f"the only document is {text!r}: too little to divide into training and validation")
    wanted = min(max(1, round(len(text) * (1 - fraction))), len(text) - 1)
    slack = round(len(text) * fraction / 2)
    low, high = max(1, wanted - slack), min(len(text) - 1, wanted + slack)
    before = text.rfind("\n", low - 1, wanted) + 1
    after = text.find("\n", wanted, high) + 1
    lines = [cut for cut in (before, after) if cut]
    cut = min(lines, key=lambda cut: abs(cut - wanted)) if lines else wanted
    return [("train", text[:cut]), ("validation", text[cut:])]
