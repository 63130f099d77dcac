"""Tokenises a source once and keeps the result on disk, named by what went into it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mixerzoo.data.build import SPOOL, build
from mixerzoo.data.config import DataConfig, HfSource, PretrainedTokenizer, StdlibSource, TextSource
from mixerzoo.data.entry import FORMAT, DamagedEntry, PreparedData, new_entry, open_entry
from mixerzoo.data.files import expand_user, read_files
from mixerzoo.data.hub import HubDataset
from mixerzoo.data.machine import alone, once_a_launch
from mixerzoo.data.notices import notices
from mixerzoo.data.progress import Meter, Progress, silent
from mixerzoo.data.sources import Corpus, Documents, read_documents
from mixerzoo.data.split import SplitCorpus, split_documents
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.errors import DataError

_SPOOL_FIELD = "text"


def default_cache_dir() -> Path:
    """``$MIXERZOO_CACHE``, else ``$XDG_CACHE_HOME/mixerzoo``, else ``~/.cache/mixerzoo``.

    Raises:
        DataError: there is no home directory where one is needed.
    """
    if chosen := os.environ.get("MIXERZOO_CACHE"):
        return expand_user(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else expand_user("~/.cache")) / "mixerzoo"


def prepare(config: DataConfig, *, cache_dir: Path | None = None, progress: Progress | None = None) -> PreparedData:
    """Reads, splits and tokenises the text of ``config``, or opens what an earlier call prepared.

    Local text is read in full each time to find its fingerprint; a streamed dataset is not. Text is never
    held in memory all at once, only one document and a few batches of tokens. Several processes may prepare the
    same text at the same time: on one machine one of them does, and the others wait. Under torchrun one process of
    each machine reads the text at all; when it is killed, another one takes over.

    Args:
        config: sources, tokenizer, sequence length and validation share.
        cache_dir: where prepared text is kept; by default ``default_cache_dir()``.
        progress: called with a stage (``"wait"``, ``"download"``, ``"read"``, ``"train_tokenizer"``, ``"tokenize"``),
            the bytes of text done and the bytes in all (0 where that is not known).

    What was prepared before is verified by its checksums, once a run on each machine; a damaged entry is made again,
    and a notice says so.

    Raises:
        DataError: the text or the tokenizer is missing, malformed or out of reach; there is no text for validation; the
            training side is shorter than one training sequence; one of several sources ends before the limit; or the
            cache cannot be read or written.
    """
    report = progress or silent
    cache = default_cache_dir() if cache_dir is None else cache_dir
    what = (str(cache.absolute()), os.getcwd(), config.model_dump_json())
    made = once_a_launch(what, lambda: _entry_of(config, cache, report), report)
    directory = Path(made["directory"])
    prepared = open_entry(directory)
    if prepared is None:
        raise DataError(f"{directory} was written and cannot be read back: check the disk")
    num_tokens = len(prepared.train.tokens)
    if num_tokens <= config.sequence_length:
        limited = config.max_tokens is not None or config.max_documents is not None
        advice = "give more text, set the limit higher" if limited else "give more text"
        raise DataError(
            f"the training text has {num_tokens} tokens ({prepared.train.num_bytes} bytes in "
            f"{prepared.train.num_documents} documents), and one sequence of sequence_length "
            f"{config.sequence_length} needs {config.sequence_length + 1}: {advice} or shorten it"
        )
    return replace(prepared, notices=(*made["notices"], *notices(config, prepared)))


def _entry_of(config: DataConfig, cache: Path, report: Progress) -> dict[str, Any]:
    """The directory of the entry, which is made if need be, and what is worth a line about that."""
    ready = None
    if isinstance(config.tokenizer, PretrainedTokenizer):
        ready = TextTokenizer.pretrained(config.tokenizer.path, config.tokenizer.end_of_text)
    sources = [_source(source, number, config, report) for number, source in enumerate(config.all_sources)]
    directory = cache / _key([fingerprint for fingerprint, _ in sources], config, ready)
    said = []
    try:
        found = open_entry(directory) is not None
    except DamagedEntry:
        found = False  # said below, unless another process is first
    if not found:
        with alone(str(directory.absolute()), report):
            try:
                found = open_entry(directory) is not None
            except DamagedEntry as damage:
                said.append(f"{damage}; it is made again")
            if not found:
                with new_entry(directory) as scratch:
                    build(scratch, [split_in(scratch) for _, split_in in sources], config, ready, report)
    return {"directory": str(directory), "notices": said}


def _source(
    source: StdlibSource | TextSource | HfSource, number: int, config: DataConfig, report: Progress
) -> tuple[str, Callable[[Path], SplitCorpus]]:
    """What the source's part of the key is, and how to split it with the help of a scratch directory."""
    if not isinstance(source, HfSource):
        split = split_documents(read_documents(source), config.validation_fraction, report)
        return split.fingerprint, lambda scratch: split

    def split_in(scratch: Path) -> SplitCorpus:
        # Streamed once to disk: splitting and training a tokenizer read the text more than once.
        folder = scratch / SPOOL / str(number)
        corpus = _spool(read_documents(source), folder, source.max_bytes or 0, report)
        return split_documents(corpus, config.validation_fraction, report)

    fraction = None if source.validation_split else config.validation_fraction
    return json.dumps([HubDataset(source).fingerprint(), fraction]), split_in


def _key(fingerprints: list[str], config: DataConfig, ready: TextTokenizer | None) -> str:
    if ready is None:
        tokenizer = config.tokenizer.model_dump_json()
    else:
        tokenizer = hashlib.sha256(ready.to_json().encode()).hexdigest() + ready.end_of_text
    parts: list[Any] = [FORMAT, fingerprints[0], tokenizer]
    if config.sources is not None:
        parts[1] = [fingerprints, [each.weight for each in config.sources], config.sources_seed]
    if config.max_documents is not None or config.max_tokens is not None:
        parts.append([config.max_documents, config.max_tokens])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _spool(corpus: Corpus, folder: Path, total: int, report: Progress) -> Corpus:
    meter = Meter(report, "download", total)
    folder.mkdir(parents=True)

    def spool(documents: Documents, path: Path) -> Documents:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for text in documents():
                file.write(json.dumps({_SPOOL_FIELD: text}, ensure_ascii=False) + "\n")
                meter.add(len(text.encode()))
        return partial(read_files, [path], _SPOOL_FIELD)

    train = spool(corpus.documents, folder / "train.jsonl")
    validation = None
    if corpus.validation is not None:
        validation = spool(corpus.validation, folder / "validation.jsonl")
    meter.finish()
    return Corpus(corpus.name, train, validation)
