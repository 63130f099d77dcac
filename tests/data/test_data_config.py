"""The ``data`` part of a recipe as pydantic sees it, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from mixerzoo.data import (
    BpeTokenizer,
    BytesTokenizer,
    DataConfig,
    HfSource,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
)

MODELS = [StdlibSource, TextSource, HfSource, BytesTokenizer, BpeTokenizer, PretrainedTokenizer, DataConfig]


def parse(**changes: object) -> DataConfig:
    plain: dict[str, object] = {
        "source": {"name": "stdlib"},
        "tokenizer": {"name": "bytes"},
        "sequence_length": 8,
    }
    return DataConfig.model_validate(plain | changes)


def test_names_choose_the_models() -> None:
    config = parse(
        source={"name": "text", "paths": ["a.txt", "b/*.txt"], "validation_paths": ["c.txt"]},
        tokenizer={"name": "bpe", "vocab_size": 300},
    )
    assert config.source == TextSource(paths=("a.txt", "b/*.txt"), validation_paths=("c.txt",))
    assert config.tokenizer == BpeTokenizer(vocab_size=300)
    assert config.validation_fraction == 0.05


@pytest.mark.parametrize("files", ["a.json", ["a.json", "b.json"], {"train": "a", "test": ["b", "c"]}])
def test_data_files_come_as_yaml_gives_them(files: object) -> None:
    config = parse(source={"name": "hf", "path": "json", "data_files": files})
    assert json.loads(config.model_dump_json())["source"]["data_files"] == files


def test_a_dumped_config_is_read_back() -> None:
    config = parse(source={"name": "text", "paths": ["a.txt"]})
    assert DataConfig.model_validate(config.model_dump()) == config
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {"name": "stdlb"}},
        {"source": {"name": "stdlib", "max_byte": 3}},
        {"source": {"name": "stdlib", "max_bytes": 0}},
        {"source": {"name": "stdlib", "max_bytes": "300"}},
        {"source": {"name": "text", "paths": []}},
        {"source": {"name": "text", "paths": "a.txt"}},
        {"source": {"name": "text", "paths": [1]}},
        {"tokenizer": {"name": "bpe", "vocab_size": 256}},
        {"tokenizer": {"name": "bytes", "vocab_size": 257}},
        {"sequence_length": 0},
        {"sequence_length": 8.0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 0.6},
        {"unknown": 1},
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        parse(**changes)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"name": "bytes"}, 257),
        ({"name": "bpe", "vocab_size": 500}, 500),
        ({"name": "pretrained", "path": "gpt2"}, None),
    ],
)
def test_vocab_size_is_known_without_data(tokenizer: dict[str, object], expected: int | None) -> None:
    assert parse(tokenizer=tokenizer).vocab_size == expected


@pytest.mark.parametrize("model", MODELS)
def test_every_field_has_a_description(model: type[BaseModel]) -> None:
    missing = [name for name, field in model.model_fields.items() if not field.description]
    assert not missing


def test_the_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        parse().sequence_length = 3  # type: ignore[misc]


def loaded_after(code: str) -> set[str]:
    """The heavy libraries among the loaded modules after ``code`` ran in a fresh interpreter."""
    heavy = {"torch", "transformers", "tokenizers", "datasets", "numpy"}
    report = f"{code}\nimport sys, json; print(json.dumps(sorted({heavy!r} & set(sys.modules))))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_importing_the_config_is_cheap() -> None:
    assert loaded_after("import mixerzoo.data.config") == set()


def test_transformers_is_never_imported(tmp_path: object) -> None:
    code = f"""
import os; os.environ["HF_HUB_OFFLINE"] = "1"
from pathlib import Path
from mixerzoo.data import *
folder = Path({str(tmp_path)!r})
(folder / "a.jsonl").write_text('{{"text": "one"}}\\n{{"text": "two"}}\\n')
import datasets; datasets.config.HF_DATASETS_CACHE = folder / "datasets"
source = HfSource(path="json", data_files=str(folder / "a.jsonl"))
prepared = prepare(
    DataConfig(source=source, tokenizer=BytesTokenizer(), sequence_length=2), cache_dir=folder / "cache"
)
yardsticks(prepared)
TokenWindows(prepared.train.tokens, 2)[0]
"""
    loaded = loaded_after(code)
    assert "datasets" in loaded
    assert "transformers" not in loaded
