"""Text for training: sources, tokenizers, and prepared tokens on disk.

``prepare`` is the way in; ``TokenWindows`` cuts what it returns into sequences; ``yardsticks`` says what
simple models reach on the same validation text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixerzoo.data.config import (
    BpeTokenizer,
    BytesTokenizer,
    DataConfig,
    HfSource,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
    WeightedSource,
)
from mixerzoo.data.entry import PreparedData, TokenSplit
from mixerzoo.data.prepare import default_cache_dir, prepare
from mixerzoo.data.progress import Progress
from mixerzoo.data.shares import text_record
from mixerzoo.data.sources import Corpus, read_documents
from mixerzoo.data.split import SplitCorpus, split_documents
from mixerzoo.data.streaming import TokenStream
from mixerzoo.data.text_format import TextFormat
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.tokens import TokenFile
from mixerzoo.data.verified import once as verified_once
from mixerzoo.data.yardsticks import yardsticks

if TYPE_CHECKING:
    from mixerzoo.data.windows import TokenWindows, documents_of

__all__ = [
    "BpeTokenizer",
    "BytesTokenizer",
    "Corpus",
    "DataConfig",
    "HfSource",
    "PreparedData",
    "PretrainedTokenizer",
    "Progress",
    "SplitCorpus",
    "StdlibSource",
    "TextFormat",
    "TextSource",
    "TextTokenizer",
    "TokenFile",
    "TokenSplit",
    "TokenStream",
    "TokenWindows",
    "WeightedSource",
    "default_cache_dir",
    "documents_of",
    "prepare",
    "read_documents",
    "split_documents",
    "text_record",
    "verified_once",
    "yardsticks",
]


def __getattr__(name: str) -> object:
    # The names whose module cannot do without torch at import time.
    if name in ("TokenWindows", "documents_of"):
        from mixerzoo.data import windows

        return getattr(windows, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
