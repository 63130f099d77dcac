"""A stock model to import and to export."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixerzoo import TextTokenizer
from stock import stock_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock model with a tokenizer and all else that lies beside weights."""
    directory = tmp_path_factory.mktemp("llama")
    stock_model("llama").save_pretrained(directory)
    TextTokenizer.for_bytes().save(directory)
    return directory
