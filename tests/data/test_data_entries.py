"""What is prepared lies in an entry of the cache: damaged, it is made again; its checksums are computed once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import DOCUMENTS, config, save
from mixerzoo.data import TokenWindows, entry, prepare, yardsticks
from mixerzoo.data.entry import DamagedEntry, open_entry
from mixerzoo.errors import DataError
from mixerzoo.files import sha256

pytestmark = pytest.mark.usefixtures("cache")


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


def test_meta_names_sizes_and_checksums(corpus: str) -> None:
    prepared = prepare(config(corpus))
    meta = json.loads((prepared.directory / "meta.json").read_text())
    sizes = {file.name: os.path.getsize(file) for file in prepared.directory.iterdir()}
    written = {name: {"bytes": size, "sha256": sha256(prepared.directory / name)} for name, size in sizes.items()}
    del written["meta.json"]
    assert meta["files"] == written
    assert meta["train"]["num_tokens"] * 2 == sizes["train.bin"]
