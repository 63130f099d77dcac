"""Prepared text: what is in it, when it is made again, and what is said of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from corpora import DOCUMENTS, config, documents_of, save
from mixerzoo.data import (
    BpeTokenizer,
    BytesTokenizer,
    DataConfig,
    PreparedData,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
    TextTokenizer,
    default_cache_dir,
    encoding,
    prepare,
)
from mixerzoo.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), BpeTokenizer(vocab_size=300)])
def test_every_document_is_there(corpus: str, tokenizer: object) -> None:
    prepared = prepare(config(corpus, tokenizer=tokenizer))
    train, validation = documents_of(prepared, "train"), documents_of(prepared, "validation")
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert (len(train), len(validation)) == (prepared.train.num_documents, prepared.validation.num_documents)
    assert prepared.train.num_bytes == sum(len(text.encode()) for text in train)
    assert prepared.validation.num_bytes == sum(len(text.encode()) for text in validation)
    assert prepared.train.tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        prepared.train.tokens[:3][0] = 1


def test_small_batches_change_nothing(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(corpus, tokenizer=BpeTokenizer(vocab_size=300))
    whole = prepare(settings)
    batches = []

    def encode_batch(self: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
        batches.append(sum(map(len, texts)))
        return [self.encode(text) for text in texts]

    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 50)
    monkeypatch.setattr(TextTokenizer.pieces, "__defaults__", (20,))
    monkeypatch.setattr(TextTokenizer, "encode_batch", encode_batch)
    pieced = prepare(settings, cache_dir=tmp_path / "other")
    for name in ("train.bin", "validation.bin", "validation.txt", "bigrams.npy", "meta.json"):
        assert (whole.directory / name).read_bytes() == (pieced.directory / name).read_bytes()
    assert max(batches) < 50 + 20 + len("Document 10.\n")


def test_bpe_sees_only_the_training_side(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("zqzqzqzq " * 100)
    source = TextSource(paths=(save(tmp_path / "a", DOCUMENTS),), validation_paths=(str(held_out),))
    prepared = prepare(config("", source=source, tokenizer=BpeTokenizer(vocab_size=300)))
    assert len(prepared.tokenizer.encode("zq")) == 2
    assert len(prepared.tokenizer.encode(" words")) == 1


def test_prepared_once(corpus: str, cache: Path) -> None:
    settings = config(corpus)
    stages: list[str] = []
    first = prepare(settings, progress=lambda stage, done, total: stages.append(stage))
    stamps = {file: file.stat().st_mtime_ns for file in first.directory.iterdir()}
    assert set(stages) == {"read", "tokenize"}
    stages.clear()
    again = prepare(settings, progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"read"}
    assert again.fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in again.directory.iterdir()} == stamps
    assert list(cache.iterdir()) == [first.directory]


def test_fingerprint_follows_the_content(corpus: str, tmp_path: Path) -> None:
    first = prepare(config(corpus)).fingerprint
    moved = save(tmp_path / "moved" / "elsewhere", DOCUMENTS)
    assert prepare(config(moved)).fingerprint == first
    assert prepare(config(corpus, sequence_length=9)).fingerprint == first
    others = [
        config(corpus, validation_fraction=0.4),
        config(corpus, tokenizer=BpeTokenizer(vocab_size=300)),
        config(corpus, tokenizer=BpeTokenizer(vocab_size=301)),
        config(save(tmp_path / "changed", [*DOCUMENTS[:-1], "x"])),
    ]
    prints = {prepare(other).fingerprint for other in others}
    assert len(prints | {first}) == len(others) + 1


def test_a_pretrained_tokenizer_is_known_by_its_content(corpus: str, tmp_path: Path) -> None:
    def prepared(folder: Path, end_of_text: str | None = None) -> PreparedData:
        tokenizer = PretrainedTokenizer(path=str(folder), end_of_text=end_of_text)
        return prepare(config(corpus, tokenizer=tokenizer))

    tokenizer = TextTokenizer.train_bpe(DOCUMENTS, 300)
    tokenizer.save(tmp_path / "one")
    tokenizer.save(tmp_path / "two")
    first = prepared(tmp_path / "one")
    assert prepared(tmp_path / "two").fingerprint == first.fingerprint
    assert sorted(documents_of(first, "train") + documents_of(first, "validation")) == sorted(DOCUMENTS)
    assert prepared(tmp_path / "two", end_of_text="!").fingerprint != first.fingerprint
    file = tmp_path / "two" / "tokenizer.json"
    assert prepared(file).fingerprint == first.fingerprint
    (tmp_path / "two" / "tokenizer_config.json").write_text('{"eos_token": "!"}')
    assert prepared(file).fingerprint == prepared(tmp_path / "two").fingerprint != first.fingerprint
    TextTokenizer.train_bpe(DOCUMENTS, 290).save(tmp_path / "two")
    assert prepared(tmp_path / "two").fingerprint != first.fingerprint


def test_many_tokens_take_four_bytes(corpus: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {"[UNK]": 70_000, "</s>": 1}
    Tokenizer(models.WordLevel(words, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    settings = config(corpus, tokenizer=PretrainedTokenizer(path=str(tmp_path / "tokenizer.json")))
    prepared = prepare(settings)
    assert prepared.train.tokens.dtype == np.uint32
    assert list(prepared.train.tokens[:4]) == [70_000, 1, 70_000, 1]


def test_the_global_random_state_plays_no_part(corpus: str, tmp_path: Path) -> None:
    random.seed(1)
    state = random.getstate()
    first = prepare(config(corpus))
    assert random.getstate() == state
    random.seed(2)
    again = prepare(config(corpus), cache_dir=tmp_path / "other")
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.train.tokens, first.train.tokens)


class TestNotices:
    def test_none_where_all_is_as_asked(self, tmp_path: Path) -> None:
        documents = [f"line {number}\n" * 400 for number in range(43)]
        prepared = prepare(config(save(tmp_path / "a", documents), validation_fraction=0.05))
        assert prepared.notices == ()
        assert prepared.held_out == pytest.approx(0.05, rel=0.2)

    def test_a_share_that_whole_documents_do_not_give(self, tmp_path: Path) -> None:
        prepared = prepare(config(save(tmp_path / "a", ["a" * 40, "b" * 50, "c" * 60]), validation_fraction=0.05))
        (notice,) = prepared.notices
        assert f"{prepared.held_out:.2%} of the text is held out" in notice
        assert "asks for 5.00%" in notice
        named = TextSource(
            paths=(str(tmp_path / "a" / "000.txt"),), validation_paths=(str(tmp_path / "a" / "001.txt"),)
        )
        assert prepare(config("", source=named)).notices == ()

    def test_a_vocabulary_that_the_text_does_not_fill(self, tmp_path: Path) -> None:
        corpus = save(tmp_path / "a", ["some words " * 300 + str(number) for number in range(9)])
        settings = config(corpus, tokenizer=BpeTokenizer(vocab_size=50_304))
        for prepared in (prepare(settings), prepare(settings)):
            (notice,) = (notice for notice in prepared.notices if "tokenizer" in notice)
            assert f"asked for 50,304 tokens, and the text fills {prepared.tokenizer.vocab_size}:" in notice


def test_too_little_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0123456789")
    message = r"has 10 tokens \(9 bytes in 1 documents\), and one sequence of sequence_length 10 needs 11"
    with pytest.raises(DataError, match=message):
        prepare(config(str(path), sequence_length=10, validation_fraction=0.1))
    assert len(prepare(config(str(path), sequence_length=9, validation_fraction=0.1)).train.tokens) == 10


def test_default_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MIXERZOO_CACHE", "~/mine")
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("MIXERZOO_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "mixerzoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == tmp_path / ".cache" / "mixerzoo"
    monkeypatch.setenv("MIXERZOO_CACHE", "~nosuchuser0/cache")
    with pytest.raises(DataError, match="no home directory of that user"):
        default_cache_dir()


def test_the_standard_library_can_be_prepared() -> None:
    settings = DataConfig(
        source=StdlibSource(max_bytes=300_000), tokenizer=BpeTokenizer(vocab_size=512), sequence_length=128
    )
    prepared = prepare(settings)
    assert prepared.train.num_bytes + prepared.validation.num_bytes <= 300_000
    assert max(prepared.train.tokens) < 512
    assert not set(documents_of(prepared, "train")) & set(documents_of(prepared, "validation"))
