"""Reads the documents of a source, in an order that is always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mixerzoo.data.config import HfSource, StdlibSource, TextSource
from mixerzoo.data.files import expand, read_files
from mixerzoo.data.hub import HubDataset
from mixerzoo.data.stdlib import stdlib_documents

Documents = Callable[[], Iterator[str]]
"""Each call reads the documents from the beginning. No document is empty."""


@dataclass(frozen=True)
class Corpus:
    """The documents of a source; nothing is read before they are iterated over.

    Attributes:
        name: names the source in error messages.
        documents: all documents, or the training documents where ``validation`` is given.
        validation: the validation documents, where the source tells them apart.
        whole_documents: hold out whole documents by their hashes alone, so that what is held out of a part of the
            source is held out of all of it.
    """

    name: str
    documents: Documents
    validation: Documents | None = None
    whole_documents: bool = False


def read_documents(source: StdlibSource | TextSource | HfSource) -> Corpus:
    """The documents of ``source``.

    Raises:
        DataError: a file is missing, or a pattern matches nothing. While iterating: text is malformed.
    """
    if isinstance(source, StdlibSource):
        # The tasks of `mixerzoo eval` ask about what every recipe with this source holds out.
        return Corpus("source 'stdlib'", partial(stdlib_documents, source.max_bytes), whole_documents=True)
    if isinstance(source, HfSource):
        dataset = HubDataset(source)
        return Corpus(
            f"source 'hf' ({source.path})",
            partial(dataset.documents, source.split),
            None if source.validation_split is None else partial(dataset.documents, source.validation_split),
        )
    held_out = source.validation_paths
    return Corpus(
        f"source 'text' ({', '.join(source.paths)})",
        partial(read_files, expand(source.paths), source.field),
        None if held_out is None else partial(read_files, expand(held_out), source.field),
    )
