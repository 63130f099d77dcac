"""Tokenising in several processes gives the files that one process gives."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixerzoo.data import BpeTokenizer, DataConfig, TextSource, TextTokenizer, encoding_pool, prepare
from mixerzoo.data.encoding import Here, encoded
from mixerzoo.data.encoding_pool import EncodingPool
from mixerzoo.errors import DataError

DOCUMENTS = [f"Document {number}.\n" + "Ünï words and more of them\n" * (number % 7) for number in range(200)]


def settings(folder: Path, **changes: object) -> DataConfig:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number:03}.txt").write_text(text)
    source = TextSource(paths=(str(folder / "*.txt"),))
    plain = {"source": source, "tokenizer": BpeTokenizer(vocab_size=300), "sequence_length": 8}
    return DataConfig.model_validate(plain | {"validation_fraction": 0.2} | changes)


@pytest.mark.parametrize("limit", [{}, {"max_tokens": 2001}])
def test_the_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]) -> None:
    alone = prepare(settings(tmp_path / "text", **limit), cache_dir=tmp_path / "alone")
    monkeypatch.setattr(encoding_pool, "_BATCH_CHARACTERS", 100)
    shared = prepare(settings(tmp_path / "text", workers=2, **limit), cache_dir=tmp_path / "shared")
    assert shared.fingerprint == alone.fingerprint
    names = {file.name for file in alone.directory.iterdir()}
    assert names == {file.name for file in shared.directory.iterdir()}
    for name in names:
        assert (alone.directory / name).read_bytes() == (shared.directory / name).read_bytes()


def test_what_is_read_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_pool, "_BATCH_CHARACTERS", 10)
    read = 0

    def documents() -> Iterator[tuple[int, str]]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield number, "0123456789"

    with EncodingPool(TextTokenizer.for_bytes(), "<u2", 1) as pool:
        parts = encoded(documents(), pool)
        for number in range(20):
            assert next(parts).label == number
            assert read - number <= pool.ahead + 1
        assert pool.ahead == 2


def test_long_documents_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextTokenizer.pieces, "__defaults__", (20,))
    texts = ["short", "a long one of many words " * 9, "x"]
    parts = list(encoded(enumerate(texts), Here(TextTokenizer.for_bytes(), "<u2")))
    assert ["".join(part.piece.text for part in parts if part.label == number) for number in range(3)] == texts
    assert [part.label for part in parts if part.ends] == [0, 1, 2]
    assert len(parts) > 5
    assert all(part.num_tokens * 2 == len(part.ids) for part in parts)


def wait(condition: object) -> None:
    began = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - began < 60
        time.sleep(0.01)


def test_a_process_that_is_killed_is_an_error_in_words() -> None:
    with EncodingPool(TextTokenizer.for_bytes(), "<u2", 1) as pool:
        assert pool.submit(["ab", ""])().lengths == [2, 0]
        os.kill(pool._workers[0]._process.pid, signal.SIGKILL)
        with pytest.raises(
            DataError, match=r"a process of data\.workers ended .*\(exit code -9\).*lower data\.workers"
        ):
            pool.submit(["ab"])()


def test_a_process_that_ends_by_itself_is_not_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_pool, "_WORKER", (sys.executable, "-c", "raise SystemExit(3)"))
    with (
        EncodingPool(TextTokenizer.for_bytes(), "<u2", 1) as pool,
        pytest.raises(DataError, match=r"ended while it was tokenising \(exit code 3\): what it said stands above$"),
    ):
        pool.submit(["ab"])()


def test_processes_end_with_the_pool_and_with_its_errors() -> None:
    def interrupted(pool: EncodingPool) -> None:
        with pool:
            for _ in range(4):
                pool.submit(["text " * 100_000])
            wait(lambda: len(pool._workers) == 2)
            raise KeyboardInterrupt

    pool = EncodingPool(TextTokenizer.for_bytes(), "<u2", 2)
    with pytest.raises(KeyboardInterrupt):
        interrupted(pool)
    assert all(worker._process.returncode is not None for worker in pool._workers)


def test_errors_of_the_text_come_back_in_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="no")), "</s>")
    with EncodingPool(tokenizer, "<u2", 1) as pool, pytest.raises(DataError, match="cannot encode this text"):
        pool.submit(["b"])()
