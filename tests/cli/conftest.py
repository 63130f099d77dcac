"""A recipe, and checkpoints that write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mixerzoo
import zoo
from case import DEPTH
from command_line import RECIPE
from mixerzoo import TextFormat, TextTokenizer
from mixerzoo.yaml_text import to_yaml
from text_files import CHATML, chain, write


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(RECIPE))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    mixerzoo.save_checkpoint(mixerzoo.build(RECIPE), directory)
    TextTokenizer.for_bytes().save(directory)
    return directory


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def talker(request: Any, tmp_path_factory: Any) -> Path:
    """A checkpoint with random weights, a tokenizer that begins texts, and a chat template."""
    place = write(tmp_path_factory.mktemp("talker") / "it", request.param, more={"chat_template": CHATML})
    size = TextTokenizer.load(place).vocab_size
    mixerzoo.save_checkpoint(zoo.make(DEPTH, vocab_size=size), place)
    return place


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """Writes a b c and then <|im_end|>, which generation_config.json names as an end beside another."""
    place = write(tmp_path / "chained")
    form = TextFormat.load(place)
    end = form.special_tokens["<|im_end|>"]
    chain(place, [*(form.tokenizer.encode(letter)[0] for letter in "abcd"), end])
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [form.special_tokens["[INST]"], end]}))
    return place
