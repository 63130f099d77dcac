"""Documents in files, and what is prepared of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixerzoo.data import BytesTokenizer, DataConfig, PreparedData, TextSource

DOCUMENTS = [f"Document {number}.\n" + "Ünï words\n" * number for number in range(30)]


def save(folder: Path, documents: Sequence[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(documents):
        (folder / f"{number:03}.txt").write_bytes(text.encode())
    return str(folder / "*.txt")


def config(pattern: str, **changes: object) -> DataConfig:
    plain = {"source": TextSource(paths=(pattern,)), "tokenizer": BytesTokenizer(), "sequence_length": 8}
    return DataConfig.model_validate(plain | {"validation_fraction": 0.2} | changes)


def documents_of(prepared: PreparedData, side: str = "train") -> list[str]:
    tokens = np.asarray(getattr(prepared, side).tokens)
    ends = np.flatnonzero(tokens == prepared.tokenizer.end_of_text_id)
    parts = np.split(tokens, ends + 1)
    assert len(parts[-1]) == 0
    return [prepared.tokenizer.decode(part[:-1].tolist()) for part in parts[:-1]]
