"""The ``data`` part of a recipe: where the text comes from and how it becomes tokens.

Importing this module costs pydantic and nothing else.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Bytes or documents: what a file system and a 64-bit counter hold.
_MAX_COUNT = 2**53

BYTES_VOCAB_SIZE = 257
"""The 256 byte values and one end-of-text token."""

# YAML and JSON give lists; a frozen model holds tuples.
_Strings = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StdlibSource(_Config):
    """The running Python's own standard library: every ``*.py`` file and every pydoc topic is a document.

    Needs no network. The text differs from one Python version to the next.
    """

    name: Literal["stdlib"] = Field("stdlib", description="Which source this is.")
    max_bytes: int | None = Field(
        None,
        ge=1,
        le=_MAX_COUNT,
        description="Keep at most this many bytes of text, as a sample spread over the whole library.",
    )


class TextSource(_Config):
    """Local UTF-8 files, packed (``.gz``, ``.bz2``, ``.xz``, ``.zst``) or not.

    A ``.jsonl`` file is one document a line, a ``.parquet`` file one a row, any other file is one document.
    """

    name: Literal["text"] = Field("text", description="Which source this is.")
    paths: _Strings = Field(description="Files or glob patterns ('**' crosses directories).")
    field: str = Field(
        "text",
        description="The key of the text in each line of a .jsonl file, or its column in a .parquet file.",
    )
    validation_paths: _Strings | None = Field(
        None,
        description="Files or glob patterns to validate on. Without them, validation_fraction of the "
        "documents in 'paths' is held out.",
    )


class HfSource(_Config):
    """A dataset streamed by the ``datasets`` library, from the Hugging Face hub or from local files."""

    name: Literal["hf"] = Field("hf", description="Which source this is.")
    path: str = Field(
        min_length=1, description="The dataset, as in datasets.load_dataset: 'owner/name', 'json', 'parquet'…"
    )
    config: str | None = Field(None, description="The configuration (subset) of the dataset.")
    split: str = Field("train", description="The split to train on.")
    validation_split: str | None = Field(
        None,
        description="The split to validate on. Without it, validation_fraction of the documents in 'split' "
        "is held out.",
    )
    field: str = Field("text", description="The column that holds the text.")
    data_files: str | _Strings | dict[str, str | _Strings] | None = Field(
        None, description="Files of the dataset: one, several, or several for each split."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit on the hub. With a full commit hash, text that was prepared "
        "before is found without the network.",
    )
    max_documents: int | None = Field(
        None, ge=1, le=_MAX_COUNT, description="Stop after this many documents of each split."
    )
    max_bytes: int | None = Field(
        None, ge=1, le=_MAX_COUNT, description="Stop before each split would exceed this many bytes of text."
    )


class BytesTokenizer(_Config):
    """One token a byte (ids 0 to 255) and an end-of-text token (id 256)."""

    name: Literal["bytes"] = Field("bytes", description="Which tokenizer this is.")

    @property
    def vocab_size(self) -> int:
        """257."""
        return BYTES_VOCAB_SIZE


class BpeTokenizer(_Config):
    """Byte-level BPE, trained on the training documents only."""

    name: Literal["bpe"] = Field("bpe", description="Which tokenizer this is.")
    vocab_size: int = Field(
        ge=BYTES_VOCAB_SIZE,
        le=2**24,
        description="Number of tokens, with the 256 bytes and the end-of-text token. A small text may fill fewer.",
    )


class PretrainedTokenizer(_Config):
    """An existing tokenizer in the format of the ``tokenizers`` library."""

    name: Literal["pretrained"] = Field("pretrained", description="Which tokenizer this is.")
    path: str = Field(
        min_length=1, description="A tokenizer.json, a directory that holds one, or a model name on the hub."
    )
    end_of_text: str | None = Field(
        None,
        min_length=1,
        description="The token that ends a document. Without it, the directory's own eos_token or one of the "
        "usual names is taken.",
    )

    @property
    def vocab_size(self) -> None:
        """None: only the tokenizer itself knows (``PreparedData.tokenizer.vocab_size``)."""
        return None


Source = Annotated[StdlibSource | TextSource | HfSource, Field(discriminator="name")]
"""Any source, told apart by ``name``."""

TokenizerConfig = Annotated[BytesTokenizer | BpeTokenizer | PretrainedTokenizer, Field(discriminator="name")]
"""Any tokenizer, told apart by ``name``."""


class WeightedSource(_Config):
    """One of several sources."""

    source: Source = Field(description="Where the text comes from.")
    weight: float = Field(gt=0, le=1, description="Its share of the training tokens; all of them sum to 1.")


_Sources = Annotated[tuple[WeightedSource, ...], Field(strict=False)]
# How far the weights may be from 1 together.
_ROUNDING = 1e-6


class DataConfig(_Config):
    """Text, its tokens, and how they are cut into sequences."""

    source: Source | None = Field(None, description="Where the text comes from. This, or sources.")
    sources: _Sources | None = Field(
        None,
        description="Several sources, each with a weight: documents are drawn from them at random, so that the weights "
        "are the shares of the tokens.",
    )
    sources_seed: int = Field(0, ge=0, lt=2**32, description="Of the draw from several sources.")
    tokenizer: TokenizerConfig = Field(description="How text becomes tokens.")
    sequence_length: int = Field(ge=1, le=2**24, description="Tokens in one training sequence.")
    validation_fraction: float = Field(
        0.05,
        ge=1e-6,
        le=0.5,
        description="Share of the documents held out for validation, where the source names no validation "
        "text of its own.",
    )
    max_documents: int | None = Field(
        None,
        ge=1,
        le=_MAX_COUNT,
        description="Train on the first so many documents of the training text. What is held out, and what a bpe "
        "tokenizer is trained on, stays as without.",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=_MAX_COUNT,
        description="Train on the first so many tokens of the training text, ends of documents counted; the document "
        "at the end is cut. What is held out, and what a bpe tokenizer is trained on, stays as without.",
    )
    document_mask: bool = Field(
        False,
        description="Train the documents of a sequence apart: a token sees those of its own document alone, which "
        "begins with the end of the text before it. Validation does the same.",
    )
    reset_positions: bool = Field(
        True, description="Whether positions count from 0 in each document, or in each sequence (document_mask only)."
    )
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Processes that tokenise, each on one core; the tokens are the same whatever their number. "
        "Default: the one process, whose tokenizer takes all cores.",
    )
    loader_workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Processes on each device that read sequences ahead while it trains; the batches are the same "
        "whatever their number.",
    )

    @model_validator(mode="after")
    def _positions_of_documents(self) -> Self:
        if not (self.document_mask or self.reset_positions):
            raise ValueError("reset_positions has no meaning without document_mask; remove it, or set document_mask")
        return self

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.source is None) == (self.sources is None):
            given = "both are given; null takes one back that is inherited" if self.source else "neither is given"
            raise ValueError(f"exactly one of source and sources says where the text comes from, and {given}")
        if self.sources is None:
            if self.sources_seed:
                raise ValueError("sources_seed has no meaning with one source; remove it")
            return self
        total = math.fsum(each.weight for each in self.sources)
        if abs(total - 1) > _ROUNDING:
            weights = ", ".join(f"{each.weight:g}" for each in self.sources) or "none of them"
            raise ValueError(f"the weights of sources must sum to 1; {weights} sum to {total:.9g}")
        return self

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens as far as it is known without the data; None for a pretrained tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def all_sources(self) -> tuple[StdlibSource | TextSource | HfSource, ...]:
        """The one source, or each of several."""
        if self.sources is not None:
            return tuple(each.source for each in self.sources)
        assert self.source is not None
        return (self.source,)
