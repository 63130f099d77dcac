"""What the recipe asks of a text and the text does not give, in words."""

from __future__ import annotations

from collections.abc import Iterator

from mixerzoo.data.config import BpeTokenizer, DataConfig, HfSource, StdlibSource, TextSource
from mixerzoo.data.entry import PreparedData
from mixerzoo.data.split import is_near

# Tokens by which a document that is cut may fall short: those of one character, or of a word.
_CUT = 64


def notices(config: DataConfig, prepared: PreparedData) -> Iterator[str]:
    """What is worth a line to whoever trains on it.

    Args:
        config: what was asked for.
        prepared: what there is.
    """
    limited = config.max_documents is not None or config.max_tokens is not None
    if config.source is not None and not limited:
        yield from _of_share(config.source, config.validation_fraction, prepared.held_out)
    if config.source is not None and limited:
        yield from _of_limits(config, prepared)
    sides = {
        "training": (prepared.mixture, prepared.train, "document"),
        "validation": (prepared.validation_mixture, prepared.validation, "held-out document"),
    }
    for name, (mixture, side, what) in sides.items():
        if mixture is not None and mixture.ended is not None:
            yield (
                f"the {name} text ends with data.sources.{mixture.ended}, which has no {what} left: "
                f"{len(side.tokens):,} tokens in {side.num_documents:,} documents"
            )
    size = prepared.tokenizer.vocab_size
    if isinstance(config.tokenizer, BpeTokenizer) and size < 0.9 * config.tokenizer.vocab_size:
        yield (
            f"the tokenizer was asked for {config.tokenizer.vocab_size:,} tokens, and the text fills {size:,}: the "
            "other rows of the embedding are never trained; set data.tokenizer.vocab_size lower"
        )


def _of_share(source: StdlibSource | TextSource | HfSource, asked: float, share: float) -> Iterator[str]:
    if not _has_validation(source) and not is_near(share, asked):
        yield (
            f"{share:.2%} of the text is held out for validation, by bytes, and validation_fraction asks for "
            f"{asked:.2%}: {_WHOLE[source.name]}"
        )


def _of_limits(config: DataConfig, prepared: PreparedData) -> Iterator[str]:
    tokens, documents = len(prepared.train.tokens), prepared.train.num_documents
    below = (config.max_tokens is None or tokens < config.max_tokens - _CUT) and (
        config.max_documents is None or documents < config.max_documents
    )
    if below:
        name, limit = (
            ("max_tokens", config.max_tokens) if config.max_tokens else ("max_documents", config.max_documents)
        )
        yield f"the training text has {tokens:,} tokens in {documents:,} documents, and data.{name} allows {limit:,}"


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
