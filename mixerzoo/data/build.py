"""Makes a cache entry: trains the tokenizer if need be, tokenises both sides, writes what the yardsticks need."""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from mixerzoo.data.config import BpeTokenizer, DataConfig
from mixerzoo.data.encoding import Encoded, Encoder, Here, encoded
from mixerzoo.data.encoding_pool import EncodingPool
from mixerzoo.data.entry import MixtureCounts, SideCounts, seal
from mixerzoo.data.mixture import Mixture
from mixerzoo.data.progress import Meter, Progress
from mixerzoo.data.split import Side, SplitCorpus
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.write import SideWriter, write_side
from mixerzoo.data.yardsticks import save_bigrams
from mixerzoo.errors import DataError

#: Where streamed text lies while an entry is made.
SPOOL = "spool"


def build(
    scratch: Path, splits: Sequence[SplitCorpus], config: DataConfig, ready: TextTokenizer | None, report: Progress
) -> None:
    """Fills a directory with a complete entry.

    Args:
        scratch: the directory.
        splits: the documents of each source.
        config: how they become tokens.
        ready: the tokenizer, where it need not be made.
        report: progress callback, stages ``"train_tokenizer"`` and ``"tokenize"``.

    Raises:
        DataError: the text cannot be read or encoded, or one of several sources ends too early.
    """
    held_out = _held_out(splits, report)
    tokenizer = ready or _make_tokenizer(splits, config, held_out, report)
    tokenizer.save(scratch)
    dtype = "<u2" if tokenizer.vocab_size < 2**16 else "<u4"
    meter = Meter(report, "tokenize", sum(split.num_bytes for split in splits))
    with ExitStack() as stack:
        encoder: Encoder = Here(tokenizer, dtype)
        if config.workers is not None:
            encoder = stack.enter_context(EncodingPool(tokenizer, dtype, config.workers))
        train = stack.enter_context(
            write_side(
                scratch / "train.bin",
                tokenizer,
                dtype,
                max_documents=config.max_documents,
                max_tokens=config.max_tokens,
            )
        )
        validation = stack.enter_context(
            write_side(scratch / "validation.bin", tokenizer, dtype, scratch / "validation.txt")
        )
        mixture = held = None
        if config.sources is None:
            _write_both(splits[0], encoder, train, validation, meter)
        else:
            texts = [_train_texts(split, splits, held_out) for split in splits]
            mixture = _write_mixture(texts, encoder, train, config, meter, splits)
            texts = [split.side("validation") for split in splits]
            held = _write_mixture(texts, encoder, validation, config, meter)
    meter.finish()
    save_bigrams(scratch / "bigrams.npy", train.bigrams, validation.bigrams)
    shutil.rmtree(scratch / SPOOL, ignore_errors=True)
    seal(scratch, dtype, train.counts(), validation.counts(), mixture, held)


def _held_out(splits: Sequence[SplitCorpus], report: Progress) -> frozenset[bytes]:
    """The hashes of what several sources hold out; one alone has no other that could train on it."""
    if len(splits) == 1:
        return frozenset()
    meter = Meter(report, "read", sum(split.num_bytes for split in splits))
    found = set()
    for side, text in chain.from_iterable(splits):
        meter.add(len(data := text.encode()))
        if side == "validation":
            found.add(hashlib.sha256(data).digest())
    meter.finish()
    return frozenset(found)


def _train_texts(split: SplitCorpus, splits: Sequence[SplitCorpus], held_out: frozenset[bytes]) -> Iterator[str]:
    """The training documents of a source, without those of which another one holds out all or the end."""
    ends = {digest for other in splits for digest, share in other.cut.items() if split.cut.get(digest) != share}
    texts = split.side("train", held_out, ends)
    return (text for text in texts if hashlib.sha256(text.encode()).digest() not in held_out) if held_out else texts


def _make_tokenizer(
    splits: Sequence[SplitCorpus], config: DataConfig, held_out: frozenset[bytes], report: Progress
) -> TextTokenizer:
    if not isinstance(config.tokenizer, BpeTokenizer):
        return TextTokenizer.for_bytes()
    meter = Meter(report, "train_tokenizer", sum(split.num_bytes for split in splits))
    texts = chain.from_iterable(_train_texts(split, splits, held_out) for split in splits)
    tokenizer = TextTokenizer.train_bpe(meter.watch(texts), config.tokenizer.vocab_size)
    meter.finish()
    return tokenizer


def _write_both(split: SplitCorpus, encoder: Encoder, train: SideWriter, validation: SideWriter, meter: Meter) -> None:
    """Both sides of one source in one pass over it."""

    def wanted() -> Iterator[tuple[Side, str]]:
        for side, text in split:
            meter.add(len(text.encode()))
            if side == "validation" or not train.full:
                yield side, text

    for part in encoded(wanted(), encoder):
        (train if part.label == "train" else validation).write(part)


def _write_mixture(
    texts: Sequence[Iterator[str]],
    encoder: Encoder,
    writer: SideWriter,
    config: DataConfig,
    meter: Meter,
    limited: Sequence[SplitCorpus] | None = None,
) -> MixtureCounts:
    """One side of several sources; gives what came of each. Where it is limited, it must not end before."""
    assert config.sources is not None

    def stream(source: int) -> Iterator[Encoded[int]]:
        return encoded(((source, text) for text in meter.watch(texts[source])), encoder)

    weights = [each.weight for each in config.sources]
    mixture = Mixture([stream(source) for source in range(len(texts))], weights, config.sources_seed)
    given = [SideCounts(0, 0, 0)] * len(texts)
    for part in mixture:
        before = writer.counts()
        writer.write(part)
        given[part.label] = given[part.label].plus(writer.counts(), before)
        if writer.full:
            break
    if limited is not None and not writer.full:
        _check_enough(mixture, limited, config, writer)
    # What was not drawn is read too: the key of the entry says that it is what was split.
    for rest in texts:
        deque(rest, maxlen=0)
    return MixtureCounts(tuple(given), mixture.ended)


def _check_enough(mixture: Mixture, splits: Sequence[SplitCorpus], config: DataConfig, writer: SideWriter) -> None:
    """Refuse a mixture that ends before its limit."""
    asked = config.max_tokens or config.max_documents
    if asked is None or mixture.ended is None:
        return
    assert config.sources is not None
    ended, counts = mixture.ended, writer.counts()
    unit = "max_tokens" if config.max_tokens else "max_documents"
    reached = counts.num_tokens if config.max_tokens else counts.num_documents
    raise DataError(
        f"data.sources.{ended} ({splits[ended].name}) has no document left after {mixture.taken[ended]:,} tokens, when "
        f"the training text had {reached:,} of the {asked:,} of data.{unit}: lower that to {reached}, lower its weight "
        f"of {config.sources[ended].weight:g}, or give it more text"
    )
