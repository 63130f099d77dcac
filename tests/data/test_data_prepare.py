"""Prepared text: what is in it, when it is made again, and what becomes of interrupted work."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixerzoo.data import (
    BpeTokenizer,
    BytesTokenizer,
    DataConfig,
    PreparedData,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
    TextTokenizer,
    TokenWindows,
    default_cache_dir,
    encoding,
    entry,
    prepare,
    yardsticks,
)
from mixerzoo.data.entry import DamagedEntry, new_entry, open_entry
from mixerzoo.data.tokens import TokenFile
from mixerzoo.errors import DataError
from mixerzoo.files import sha256

DOCUMENTS = [f"Document {number}.\n" + "Ünï words\n" * number for number in range(30)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return save(tmp_path / "corpus", DOCUMENTS)


def save(folder: Path, documents: Sequence[str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(documents):
        (folder / f"{number:03}.txt").write_bytes(text.encode())
    return str(folder / "*.txt")


def config(pattern: str, **changes: object) -> DataConfig:
    plain = {"source": TextSource(paths=(pattern,)), "tokenizer": BytesTokenizer(), "sequence_length": 8}
    return DataConfig.model_validate(plain | {"validation_fraction": 0.2} | changes)


def documents_of(prepared: PreparedData, side: str) -> list[str]:
    tokens = np.asarray(getattr(prepared, side).tokens)
    ends = np.flatnonzero(tokens == prepared.tokenizer.end_of_text_id)
    parts = np.split(tokens, ends + 1)
    assert len(parts[-1]) == 0
    return [prepared.tokenizer.decode(part[:-1].tolist()) for part in parts[:-1]]


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


def empty_it(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.mkdir()


def replace_by_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_it_by_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("a file")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "train.bin").write_bytes(b"\0"),
        lambda entry: (entry / "bigrams.npy").write_bytes(b"\0"),
        lambda entry: (entry / "validation.bin").unlink(),
        lambda entry: (entry / "tokenizer.json").unlink(),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "meta.json").write_text("{"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text('{"files": {}}'),
        lambda entry: (entry / "meta.json").write_text("[" * 100_000),
        lambda entry: (entry / "train.bin").write_bytes(bytes((entry / "train.bin").stat().st_size)),
        lambda entry: (entry / "validation.txt").write_bytes(bytes((entry / "validation.txt").stat().st_size)),
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace("num_bytes", "n", 1)),
        lambda entry: replace_by_a_pipe(entry / "meta.json"),
        lambda entry: replace_by_a_pipe(entry / "train.bin"),
        lambda entry: (entry / "train.bin").rename(entry / "bin") and (entry / "train.bin").mkdir(),
        empty_it,
        replace_it_by_a_file,
    ],
)
def test_a_damaged_entry_is_made_again(corpus: str, cache: Path, damage: Callable[[Path], object]) -> None:
    settings = config(corpus)
    first = prepare(settings)
    expected = np.array(first.train.tokens)
    damage(first.directory)
    with pytest.raises(DamagedEntry, match="damaged"):
        open_entry(first.directory)
    again = prepare(settings)
    assert any(f"{first.directory} is damaged" in notice and "it is made again" in notice for notice in again.notices)
    assert np.array_equal(again.train.tokens, expected)
    assert list(cache.iterdir()) == [again.directory]


@given(st.data())
def test_random_bytes_in_place_of_any_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("random")
    settings = config(save(folder / "corpus", DOCUMENTS[:5]))
    first = prepare(settings, cache_dir=folder / "cache")
    expected = np.asarray(first.train.tokens), np.asarray(first.validation.tokens), yardsticks(first)
    file = data.draw(st.sampled_from(sorted(first.directory.iterdir())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content[:] = data.draw(st.binary(max_size=40) | st.binary(min_size=len(content), max_size=len(content)))
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    again = prepare(settings, cache_dir=folder / "cache")
    found = np.asarray(again.train.tokens), np.asarray(again.validation.tokens), yardsticks(again)
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found[:2], expected[:2], strict=True))
    assert found[2] == expected[2]
    assert (again.train.num_bytes, again.validation.num_bytes) == (first.train.num_bytes, first.validation.num_bytes)


def test_a_permission_is_not_damage(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(config(corpus))
    stamp = (first.directory / "meta.json").stat().st_mtime_ns

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(first.directory / "meta.json"))

    with monkeypatch.context() as patch:
        patch.setattr("mixerzoo.data.entry.read_sealed_json", refuse)
        with pytest.raises(DataError, match=r"cannot read the prepared text in .*Permission denied .*meta\.json"):
            prepare(config(corpus))
    assert (prepare(config(corpus)).directory / "meta.json").stat().st_mtime_ns == stamp


def test_checksums_are_computed_once_a_process(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = entry.sha256
    monkeypatch.setattr(entry, "sha256", lambda file: hashed.append(file.name) or real(file))
    first = prepare(config(corpus))
    hashed.clear()
    prepare(config(corpus))
    assert not hashed
    (first.directory / "train.bin").touch()
    prepare(config(corpus))
    assert sorted(set(hashed)) == sorted(file.name for file in first.directory.iterdir() if file.name != "meta.json")


def test_checksums_are_computed_once_a_launch(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(config(corpus))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    script = (
        "import sys; from pathlib import Path; from mixerzoo.data import entry; real = entry.sha256\n"
        "entry.sha256 = lambda file: print(file.name) or real(file)\n"
        "entry.open_entry(Path(sys.argv[1]))"
    )
    (directory,) = (tmp_path / "cache").iterdir()

    def names_hashed(**variables: str) -> int:
        run = subprocess.run(
            [sys.executable, "-c", script, str(directory)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return len(run.stdout.split())

    launch = {"LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "1"}
    assert [names_hashed(**launch), names_hashed(**launch)] == [6, 0]
    assert names_hashed(**launch | {"MASTER_PORT": "2"}) == 6
    assert [names_hashed(), names_hashed()] == [6, 6]


def test_a_file_that_becomes_shorter_while_it_is_read(corpus: str) -> None:
    prepared = prepare(config(corpus))
    windows = TokenWindows(prepared.train.tokens, 8)
    last = len(windows) - 1
    expected = windows[last]["input_ids"].tolist()
    os.truncate(prepared.directory / "train.bin", 20)
    with pytest.raises(DataError, match=r"train\.bin has become shorter while it was in use"):
        windows[last]
    assert len(windows[0]["input_ids"]) == 8
    again = prepare(config(corpus))
    assert TokenWindows(again.train.tokens, 8)[last]["input_ids"].tolist() == expected


def test_an_entry_that_is_deleted_is_still_read(corpus: str) -> None:
    tokens = prepare(config(corpus)).train.tokens
    expected = np.asarray(tokens)
    shutil.rmtree(tokens.path.parent)
    assert np.array_equal(tokens[:], expected)
    with pytest.raises(DataError, match=r"cannot read .*train\.bin: No such file"):
        pickle.loads(pickle.dumps(tokens))


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


SCRIPT = """
import os, signal, sys
from pathlib import Path
from mixerzoo.data import BytesTokenizer, DataConfig, TextSource, prepare  # and no torch
def progress(stage, done, total):
    if sys.argv[3] == "kill" and (stage, done) == ("tokenize", total):
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[3] == "wait" and (stage, done) == ("tokenize", total):
        Path(sys.argv[4]).touch()
        while not Path(sys.argv[5]).exists():
            pass
source = TextSource(paths=(sys.argv[1],))
config = DataConfig(source=source, tokenizer=BytesTokenizer(), sequence_length=8, validation_fraction=0.2)
prepared = prepare(config, cache_dir=Path(sys.argv[2]), progress=progress)
print(prepared.fingerprint, sum(map(int, prepared.train.tokens)))
"""


def start(*arguments: object, tmp: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    environment = os.environ | ({} if tmp is None else {"TMPDIR": str(tmp)})
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_that_race_all_end_well(corpus: str, cache: Path, tmp_path: Path) -> None:
    """As those of two machines with one cache, which wait for nobody."""
    ready = [tmp_path / "ready.0", tmp_path / "ready.1"]
    go = tmp_path / "go"
    machines = [tmp_path / "machine.0", tmp_path / "machine.1"]
    for machine in machines:
        machine.mkdir()
    racers = [start(corpus, cache, "wait", flag, go, tmp=tmp) for flag, tmp in zip(ready, machines, strict=True)]
    while not all(flag.exists() for flag in ready):
        assert all(racer.poll() is None for racer in racers)
    go.touch()
    answers = {racer.communicate()[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    prepared = prepare(config(corpus))
    assert answers == {f"{prepared.fingerprint} {sum(map(int, prepared.train.tokens))}\n"}
    assert list(cache.iterdir()) == [prepared.directory]


def test_a_killed_process_leaves_nothing_that_is_picked_up(corpus: str, cache: Path) -> None:
    with start(corpus, cache, "kill") as victim:
        victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    (leftover,) = cache.iterdir()
    assert leftover.name.startswith(".")
    prepared = prepare(config(corpus))
    assert set(cache.iterdir()) == {leftover, prepared.directory}
    assert sorted(documents_of(prepared, "train") + documents_of(prepared, "validation")) == sorted(DOCUMENTS)


def test_an_error_leaves_nothing_behind(corpus: str, cache: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "tokenize":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(corpus), progress=progress)
    assert list(cache.iterdir()) == []


def test_the_first_of_two_entries_stays(corpus: str) -> None:
    first = prepare(config(corpus))
    with new_entry(first.directory) as scratch:
        (scratch / "other").touch()
    assert open_entry(first.directory) is not None
    assert not scratch.exists()


def test_a_cache_that_cannot_be_written(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to the cache directory .*file.*set MIXERZOO_CACHE"):
        prepare(config(corpus), cache_dir=tmp_path / "file" / "cache")


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


class TestTokenWindows:
    @given(st.integers(0, 40), st.integers(1, 12))
    def test_items(self, num_tokens: int, length: int) -> None:
        tokens = np.arange(num_tokens, dtype=np.uint16)
        windows = TokenWindows(tokens, length)
        assert len(windows) == max(0, (num_tokens - 1) // length)
        for i in range(len(windows)):
            item = windows[i]
            assert item["input_ids"].tolist() == list(range(i * length, i * length + length))
            assert item["labels"].tolist() == list(range(i * length + 1, i * length + length + 1))
            assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
        for outside in (-1, len(windows)):
            with pytest.raises(IndexError):
                windows[outside]

    def test_large_ids(self) -> None:
        windows = TokenWindows(np.array([65_535, 2**32 - 1], dtype=np.uint32), 1)
        assert (windows[0]["input_ids"].item(), windows[0]["labels"].item()) == (65_535, 2**32 - 1)

    def test_a_worker_gets_the_name_of_the_file(self, corpus: str) -> None:
        prepared = prepare(config(corpus))
        windows = TokenWindows(prepared.train.tokens, 8)
        data = pickle.dumps(windows)
        assert len(data) < prepared.train.tokens.nbytes
        copy = pickle.loads(data)
        assert len(copy) == len(windows)
        assert torch.equal(copy[3]["input_ids"], windows[3]["input_ids"])

    def test_a_part_of_the_tokens_is_pickled_as_it_is(self, corpus: str) -> None:
        part = prepare(config(corpus)).train.tokens[5:50]
        copy = pickle.loads(pickle.dumps(TokenWindows(part, 4)))
        assert copy[0]["input_ids"].tolist() == part[:4].tolist()

    @given(st.data())
    def test_ids_in_a_file_are_an_array(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        ids = np.array(data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=20)), dtype="<u4")
        path = tmp_path_factory.mktemp("ids") / "ids.bin"
        path.write_bytes(ids.tobytes())
        tokens = TokenFile(path, "<u4", len(ids))
        where = data.draw(st.slices(len(ids)))
        assert tokens[where].tolist() == ids[where].tolist()
        assert list(tokens) == ids.tolist()
        assert (tokens.shape, tokens.dtype, tokens.nbytes, len(tokens)) == (ids.shape, ids.dtype, ids.nbytes, len(ids))
        assert np.asarray(tokens, dtype=np.int64).tolist() == ids.tolist()
        for place in range(-len(ids), len(ids)):
            assert tokens[place] == ids[place]
        for outside in (len(ids), -len(ids) - 1):
            with pytest.raises(IndexError):
                tokens[outside]


def test_meta_names_sizes_and_checksums(corpus: str) -> None:
    prepared = prepare(config(corpus))
    meta = json.loads((prepared.directory / "meta.json").read_text())
    sizes = {file.name: os.path.getsize(file) for file in prepared.directory.iterdir()}
    written = {name: {"bytes": size, "sha256": sha256(prepared.directory / name)} for name, size in sizes.items()}
    del written["meta.json"]
    assert meta["files"] == written
    assert meta["train"]["num_tokens"] * 2 == sizes["train.bin"]
