"""Tokenises a source once and keeps the result on disk, named by what went into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixerzoo.data.config import (
    BpeTokenizer,
    DataConfig,
    HfSource,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
)
from mixerzoo.data.entry import FORMAT, DamagedEntry, PreparedData, new_entry, open_entry, seal
from mixerzoo.data.files import expand_user, read_files
from mixerzoo.data.hub import HubDataset
from mixerzoo.data.progress import Meter, Progress
from mixerzoo.data.sources import Corpus, Documents, read_documents
from mixerzoo.data.split import SplitCorpus, is_near, split_documents
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.write import write_side
from mixerzoo.data.yardsticks import save_bigrams
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
    held in memory all at once, only one document and one batch of tokens. Several processes may prepare the
    same text at the same time.

    Args:
        config: source, tokenizer, sequence length and validation share.
        cache_dir: where prepared text is kept; by default ``default_cache_dir()``.
        progress: called with a stage (``"download"``, ``"read"``, ``"train_tokenizer"``, ``"tokenize"``), the
            bytes of text done and the bytes in all (0 where that is not known).

    What was prepared before is verified by its checksums, once a run on each machine; a damaged entry is made again,
    and a notice says so.

    Raises:
        DataError: the text or the tokenizer is missing, malformed or out of reach; there is no text for validation; the
            training side is shorter than one training sequence; or the cache cannot be read or written.
    """
    report = progress or _silent
    cache = default_cache_dir() if cache_dir is None else cache_dir
    ready = None
    if isinstance(config.tokenizer, PretrainedTokenizer):
        ready = TextTokenizer.pretrained(config.tokenizer.path, config.tokenizer.end_of_text)
    fingerprint, split_in = _source(config, report)
    directory = cache / _key(fingerprint, config, ready)
    notices = []
    try:
        prepared = open_entry(directory)
    except DamagedEntry as damage:
        prepared = None
        notices.append(f"{damage}; it is made again")
    if prepared is None:
        with new_entry(directory) as scratch:
            _build(scratch, split_in(scratch), config, ready, report)
        prepared = open_entry(directory)
    if prepared is None:
        raise DataError(f"{directory} was written and cannot be read back: check the disk")
    num_tokens = len(prepared.train.tokens)
    if num_tokens <= config.sequence_length:
        raise DataError(
            f"the training text has {num_tokens} tokens ({prepared.train.num_bytes} bytes in "
            f"{prepared.train.num_documents} documents), and one sequence of sequence_length "
            f"{config.sequence_length} needs {config.sequence_length + 1}: give more text or shorten it"
        )
    return replace(prepared, notices=(*notices, *_notices(config, prepared)))


def _notices(config: DataConfig, prepared: PreparedData) -> Iterator[str]:
    """What the recipe asks for and the text does not give."""
    share, asked = prepared.held_out, config.validation_fraction
    if not _has_validation(config.source) and not is_near(share, asked):
        yield (
            f"{share:.2%} of the text is held out for validation, by bytes, and validation_fraction asks for "
            f"{asked:.2%}: {_WHOLE[config.source.name]}"
        )
    size = prepared.tokenizer.vocab_size
    if isinstance(config.tokenizer, BpeTokenizer) and size < 0.9 * config.tokenizer.vocab_size:
        yield (
            f"the tokenizer was asked for {config.tokenizer.vocab_size:,} tokens, and the text fills {size:,}: the "
            "other rows of the embedding are never trained; set data.tokenizer.vocab_size lower"
        )


# Why the share may be another, for each source.
_WHOLE = {
    "stdlib": "whole files are held out, the same ones of every sample",
    "text": "documents are held out whole unless they are few and have many lines",
    "hf": "documents are held out whole unless they are few and have many lines",
}


def _has_validation(source: StdlibSource | TextSource | HfSource) -> bool:
    if isinstance(source, HfSource):
        return source.validation_split is not None
    return isinstance(source, TextSource) and source.validation_paths is not None


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _source(config: DataConfig, report: Progress) -> tuple[str, Callable[[Path], SplitCorpus]]:
    """What the source's part of the key is, and how to split it with the help of a scratch directory."""
    source = config.source
    if not isinstance(source, HfSource):
        split = split_documents(read_documents(source), config.validation_fraction, report)
        return split.fingerprint, lambda scratch: split

    def split_in(scratch: Path) -> SplitCorpus:
        # Streamed once to disk: splitting and training a tokenizer read the text more than once.
        corpus = _spool(read_documents(source), scratch, source.max_bytes or 0, report)
        return split_documents(corpus, config.validation_fraction, report)

    fraction = None if source.validation_split else config.validation_fraction
    return json.dumps([HubDataset(source).fingerprint(), fraction]), split_in


def _key(fingerprint: str, config: DataConfig, ready: TextTokenizer | None) -> str:
    if ready is None:
        tokenizer = config.tokenizer.model_dump_json()
    else:
        tokenizer = hashlib.sha256(ready.to_json().encode()).hexdigest() + ready.end_of_text
    return hashlib.sha256(json.dumps([FORMAT, fingerprint, tokenizer]).encode()).hexdigest()


def _spool(corpus: Corpus, scratch: Path, total: int, report: Progress) -> Corpus:
    meter = Meter(report, "download", total)

    def spool(documents: Documents, path: Path) -> Documents:
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for text in documents():
                file.write(json.dumps({_SPOOL_FIELD: text}, ensure_ascii=False) + "\n")
                meter.add(len(text.encode()))
        return partial(read_files, [path], _SPOOL_FIELD)

    folder = scratch / "spool"
    train = spool(corpus.documents, folder / "train.jsonl")
    validation = None
    if corpus.validation is not None:
        validation = spool(corpus.validation, folder / "validation.jsonl")
    meter.finish()
    return Corpus(corpus.name, train, validation)


def _build(
    scratch: Path, split: SplitCorpus, config: DataConfig, ready: TextTokenizer | None, report: Progress
) -> None:
    """Fills ``scratch`` with a complete entry."""
    tokenizer = ready or _make_tokenizer(split, config, report)
    tokenizer.save(scratch)
    dtype = "<u2" if tokenizer.vocab_size < 2**16 else "<u4"
    meter = Meter(report, "tokenize", split.num_bytes)
    with (
        write_side(scratch / "train.bin", tokenizer, dtype) as train,
        write_side(scratch / "validation.bin", tokenizer, dtype, scratch / "validation.txt") as validation,
    ):
        for side, text in split:
            (train if side == "train" else validation).add(text)
            meter.add(len(text.encode()))
    meter.finish()
    save_bigrams(scratch / "bigrams.npy", train.bigrams, validation.bigrams)
    shutil.rmtree(scratch / "spool", ignore_errors=True)
    seal(scratch, dtype, train.counts(), validation.counts())


def _make_tokenizer(split: SplitCorpus, config: DataConfig, report: Progress) -> TextTokenizer:
    if not isinstance(config.tokenizer, BpeTokenizer):
        return TextTokenizer.for_bytes()
    meter = Meter(report, "train_tokenizer", split.num_bytes)
    tokenizer = TextTokenizer.train_bpe(meter.watch(split.side("train")), config.tokenizer.vocab_size)
    meter.finish()
    return tokenizer
