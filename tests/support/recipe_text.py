"""A small recipe as text, with edits, and the errors that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixerzoo import load_recipe
from mixerzoo.errors import RecipeError

TEXT = """\
model:
  hidden_size: 16
  intermediate_size: 24
  num_layers: 4
  num_heads: 4
  num_kv_heads: 2
mixer:
  name: depth_attention
  stride: 2
data:
  source:
    name: stdlib
    max_bytes: 1000
  tokenizer:
    name: bytes
  sequence_length: 8
train:
  steps: 10
  batch_size: 2
  learning_rate: 1e-3
seed: 3
"""


def edited(*edits: tuple[str, str]) -> str:
    """`TEXT` with each first part, which must be there, replaced by the second."""
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return text


def write(path: Path, text: str = TEXT) -> Path:
    file = path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def errors(path: Path, text: str = TEXT, overrides: list[str] | None = None) -> list[str]:
    """The lines of the error that a recipe gives, without the file's folder."""
    file = write(path, text)
    with pytest.raises(RecipeError) as failure:
        load_recipe(file, overrides or [])
    return str(failure.value).replace(f"{file}", "recipe.yaml").splitlines()
