"""Datasets read by the real ``datasets`` library, from local files."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixerzoo.data import BytesTokenizer, DataConfig, HfSource, PreparedData, prepare, read_documents
from mixerzoo.data.hub import HubDataset
from mixerzoo.errors import DataError

TEXTS = [f"document {number}: " + "héllo " * number for number in range(40)]


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    # The environment variable would come too late where another test has imported the library.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))


def write(path: Path, records: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def texts_in(path: Path, texts: Sequence[str] = TEXTS) -> str:
    return write(path, [{"text": text} for text in texts])


def documents(**settings: object) -> list[str]:
    return list(read_documents(HfSource.model_validate({"path": "json", **settings})).documents())


def prepared(validation_fraction: float = 0.2, **settings: object) -> PreparedData:
    source = HfSource.model_validate({"path": "json", **settings})
    return prepare(
        DataConfig(
            source=source,
            tokenizer=BytesTokenizer(),
            sequence_length=4,
            validation_fraction=validation_fraction,
        )
    )


def test_documents_in_order(tmp_path: Path) -> None:
    file = texts_in(tmp_path / "a.jsonl", ["one", "", "two"])
    assert documents(data_files=file) == ["one", "two"]
    assert documents(data_files=[file]) == ["one", "two"]
    assert documents(data_files={"other": [file]}, split="other") == ["one", "two"]


def test_field_and_limits(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"body": text} for text in TEXTS])
    assert documents(data_files=file, field="body", max_documents=3) == TEXTS[:3]
    size = len((TEXTS[0] + TEXTS[1]).encode())
    assert documents(data_files=file, field="body", max_bytes=size) == TEXTS[:2]
    assert documents(data_files=file, field="body", max_bytes=size - 1) == TEXTS[:1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "trian"}, "dataset 'json': Bad split: trian"),
        ({"field": "txet"}, r"record 0: no column 'txet' \(did you mean 'text'\?\); its columns: 'text'"),
        ({"data_files": "/nowhere/a.jsonl"}, "dataset 'json': Unable to find '/nowhere/a.jsonl'"),
        ({"path": "nobody/nothing", "data_files": None}, "dataset 'nobody/nothing': "),
        ({"path": "/nowhere/at/all", "data_files": None}, "dataset '/nowhere/at/all': "),
    ],
)
def test_what_cannot_be_streamed(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents(**({"data_files": texts_in(tmp_path / "a.jsonl")} | settings))


def test_values_that_are_not_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": 3}])
    with pytest.raises(DataError, match="record 0: 'text' is int, expected a string"):
        documents(data_files=file)


def test_malformed_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match="dataset 'json': JSON parse error"):
        documents(data_files=str(file))


def test_without_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r'pip install "mixerzoo\[data\]"'):
        documents(data_files="a.jsonl")


def test_prepare_streams_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = texts_in(tmp_path / "a.jsonl")
    streamed = []
    real = HubDataset.documents

    def watched(self: HubDataset, split: str) -> Any:
        streamed.append(split)
        return real(self, split)

    monkeypatch.setattr(HubDataset, "documents", watched)
    first = prepared(data_files=file)
    again = prepared(data_files=file)
    assert streamed == ["train"]
    assert first.fingerprint == again.fingerprint
    assert sorted(file.name for file in first.directory.iterdir()) == [
        "bigrams.npy",
        "meta.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.bin",
        "validation.bin",
        "validation.txt",
    ]
    assert first.train.num_documents + first.validation.num_documents == len(TEXTS)


def test_a_changed_file_is_streamed_again(tmp_path: Path) -> None:
    file = texts_in(tmp_path / "a.jsonl")
    first = prepared(data_files=file)
    texts_in(tmp_path / "a.jsonl", [*TEXTS, "one more"])
    second = prepared(data_files=file)
    assert first.fingerprint != second.fingerprint
    assert second.train.num_documents + second.validation.num_documents == len(TEXTS) + 1


def test_the_fraction_counts_unless_a_split_is_named(tmp_path: Path) -> None:
    file = texts_in(tmp_path / "a.jsonl")
    small, large = prepared(0.1, data_files=file), prepared(0.5, data_files=file)
    assert small.validation.num_documents < large.validation.num_documents
    files = {"train": file, "test": texts_in(tmp_path / "b.jsonl", ["held out"])}
    named = [prepared(part, data_files=files, validation_split="test") for part in (0.1, 0.5)]
    assert named[0].fingerprint == named[1].fingerprint


def test_validation_split_takes_its_documents_from_training(tmp_path: Path) -> None:
    files = {
        "train": texts_in(tmp_path / "a.jsonl", ["one", "two", "three"]),
        "test": texts_in(tmp_path / "b.jsonl", ["two", "four"]),
    }
    result = prepared(data_files=files, validation_split="test")
    end = result.tokenizer.end_of_text_id
    assert list(result.train.tokens) == [*b"one", end, *b"three", end]
    assert list(result.validation.tokens) == [*b"two", end, *b"four", end]


def test_a_pinned_commit_is_not_looked_up() -> None:
    pinned = HubDataset(HfSource(path="owner/name", revision="0" * 40)).fingerprint()
    assert pinned == HubDataset(HfSource(path="owner/name", revision="0" * 40)).fingerprint()
    assert pinned != HubDataset(HfSource(path="owner/name", revision="1" * 40)).fingerprint()
    with pytest.raises(DataError, match="owner/name"):
        HubDataset(HfSource(path="owner/name", revision="main")).fingerprint()
