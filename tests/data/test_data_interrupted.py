"""Processes that race, are killed or fail leave a whole entry or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corpora import DOCUMENTS, config, documents_of
from mixerzoo.data import prepare
from mixerzoo.data.entry import new_entry, open_entry
from mixerzoo.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


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


def made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_processes_that_race_all_end_well(corpus: str, cache: Path, tmp_path: Path) -> None:
    """As those of two machines with one cache, which wait for nobody."""
    ready = [tmp_path / "ready.0", tmp_path / "ready.1"]
    go = tmp_path / "go"
    machines = [made(tmp_path / "machine.0"), made(tmp_path / "machine.1")]
    racers = [start(corpus, cache, "wait", flag, go, tmp=tmp) for flag, tmp in zip(ready, machines, strict=True)]
    while not all(flag.exists() for flag in ready):
        assert all(racer.poll() is None for racer in racers)
    go.touch()
    answers = {racer.communicate()[0] for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0]
    prepared = prepare(config(corpus))
    assert answers == {f"{prepared.fingerprint} {sum(map(int, prepared.train.tokens))}\n"}
    assert list(cache.iterdir()) == [prepared.directory]


def test_a_killed_process_leaves_nothing_that_is_picked_up(corpus: str, cache: Path, tmp_path: Path) -> None:
    """Of another machine with the same cache, which might be at work still."""
    with start(corpus, cache, "kill", tmp=made(tmp_path / "machine")) as victim:
        victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    (leftover,) = cache.iterdir()
    assert leftover.name.startswith(".")
    prepared = prepare(config(corpus))
    assert set(cache.iterdir()) == {leftover, prepared.directory}
    assert sorted(documents_of(prepared, "train") + documents_of(prepared, "validation")) == sorted(DOCUMENTS)


def test_what_a_killed_process_left_goes_when_its_entry_is_begun_again(corpus: str, cache: Path) -> None:
    with start(corpus, cache, "kill") as victim:
        victim.communicate()
    (leftover,) = cache.iterdir()
    other = prepare(config(corpus, validation_fraction=0.4))
    assert set(cache.iterdir()) == {leftover, other.directory}
    prepared = prepare(config(corpus))
    assert set(cache.iterdir()) == {other.directory, prepared.directory}


def test_what_nobody_has_written_to_for_a_week_goes(corpus: str, cache: Path) -> None:
    names = [f".{'0' * 64}.{'1' * 16}.partial", f".{'0' * 64}.{'2' * 16}.partial", f".notes.{'3' * 16}.partial"]
    old, young, foreign = (cache / name for name in names)
    long_ago = time.time() - 8 * 24 * 3600
    for folder in (old, young, foreign):
        file = made(folder / "spool") / "train.jsonl"
        for path in (file, file.parent, folder):
            path.touch()
            os.utime(path, (long_ago, long_ago))
    (young / "spool" / "train.jsonl").touch()
    prepared = prepare(config(corpus))
    assert set(cache.iterdir()) == {young, foreign, prepared.directory}


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
