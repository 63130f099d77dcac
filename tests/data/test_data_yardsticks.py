"""The yardsticks against the same figures worked out one byte at a time."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from mixerzoo.data import (
    BytesTokenizer,
    DataConfig,
    PreparedData,
    PretrainedTokenizer,
    TextSource,
    machine,
    prepare,
    yardsticks,
)
from mixerzoo.errors import DataError

#: Of the function's name.
module = sys.modules["mixerzoo.data.yardsticks"]

TRAIN = ["to be, or not to be\n", "that is the question: é", "x"]
VALIDATION = ["whether 'tis nobler\n", "ü in the mind\n" * 20]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    return prepare(config(tmp_path), cache_dir=tmp_path / "cache")


def config(folder: Path, **changes: object) -> DataConfig:
    for name, documents in (("train", TRAIN), ("validation", VALIDATION)):
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    source = TextSource(paths=(str(folder / "train.jsonl"),), validation_paths=(str(folder / "validation.jsonl"),))
    plain = {"source": source, "tokenizer": BytesTokenizer(), "sequence_length": 4}
    return DataConfig.model_validate(plain | changes)


def pairs(documents: list[str]) -> list[tuple[int, int]]:
    """Adjacent symbols of each document between two boundaries, here 256."""
    found: list[tuple[int, int]] = []
    for text in documents:
        symbols = [256, *text.encode(), 256]
        found += itertools.pairwise(symbols)
    return found


def naive_bigram() -> float:
    counts = Counter(pairs(TRAIN))
    totals = Counter(first for first, _ in pairs(TRAIN))
    bits = 0.0
    for first, second in pairs(VALIDATION):
        bits -= math.log2((counts[first, second] + 0.1) / (totals[first] + 0.1 * 257))
    return bits / len("".join(VALIDATION).encode())


def test_against_the_naive_count(prepared: PreparedData) -> None:
    figures = yardsticks(prepared)
    assert figures["bigram_bits_per_byte"] == pytest.approx(naive_bigram(), rel=1e-12)
    text = "".join(VALIDATION).encode()
    compressed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    assert figures["xz_bits_per_byte"] == 8 * len(compressed) / len(text)


def test_they_do_not_depend_on_the_tokenizer(prepared: PreparedData, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"?": 0, "</s>": 1}, unk_token="?")).save(str(tmp_path / "words.json"))
    tokenizer = PretrainedTokenizer(path=str(tmp_path / "words.json"))
    lossy = prepare(config(tmp_path, tokenizer=tokenizer), cache_dir=tmp_path / "cache")
    assert lossy.fingerprint != prepared.fingerprint
    assert yardsticks(lossy) == yardsticks(prepared)


def test_computed_once(prepared: PreparedData) -> None:
    figures = yardsticks(prepared)
    (prepared.directory / "bigrams.npy").unlink()
    assert yardsticks(prepared) == figures


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "[" * 100_000, '{"bigram_bits_per_byte": 1, "xz_bits_per_byte": 1}', '{"sha256_of_the_rest": 1}'],
)
def test_a_damaged_file_is_computed_again(prepared: PreparedData, content: str) -> None:
    figures = yardsticks(prepared)
    kept = (prepared.directory / "yardsticks.json").read_text()
    (prepared.directory / "yardsticks.json").write_text(content)
    assert yardsticks(prepared) == figures
    assert (prepared.directory / "yardsticks.json").read_text() == kept


def test_a_figure_that_was_changed_is_not_believed(prepared: PreparedData) -> None:
    figures = yardsticks(prepared)
    path = prepared.directory / "yardsticks.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    assert yardsticks(prepared) == figures


def test_a_cache_that_cannot_be_written_keeps_nothing(prepared: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_text", refuse)
    figures = yardsticks(prepared)
    assert not (prepared.directory / "yardsticks.json").exists()
    assert yardsticks(prepared) == figures


@pytest.mark.parametrize("more", [0, 1])
def test_of_a_long_text_xz_has_the_beginning(
    more: int, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(VALIDATION).encode()
    most = len(text) - more
    monkeypatch.setattr(module, "_MOST", most)
    figures = yardsticks(prepared)
    size = len(lzma.compress(text[:most], preset=9 | lzma.PRESET_EXTREME))
    expected = {"bigram_bits_per_byte": pytest.approx(naive_bigram()), "xz_bits_per_byte": 8 * size / most}
    assert figures == expected | ({"xz_bytes": most} if more else {})
    assert yardsticks(prepared) == figures


def test_one_process_of_a_launch_computes(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    figures = yardsticks(prepared)
    (prepared.directory / "yardsticks.json").unlink()  # a cache that cannot be written
    machine._calls.clear()  # another process of the launch
    monkeypatch.setattr(module, "_compute", lambda prepared: pytest.fail("computed again"))
    assert yardsticks(prepared) == figures


def test_an_entry_that_is_gone(prepared: PreparedData) -> None:
    shutil.rmtree(prepared.directory)
    with pytest.raises(DataError, match=r"cannot compute yardsticks from .*: prepare the data again"):
        yardsticks(prepared)
