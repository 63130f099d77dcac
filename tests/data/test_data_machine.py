"""Text is prepared by one process of a machine while the others wait, and by another one where that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from mixerzoo.data import machine
from mixerzoo.errors import DataError

SCRIPT = """
import os, sys, time
from pathlib import Path
from mixerzoo.data import BytesTokenizer, DataConfig, TextSource, prepare  # and no torch
from mixerzoo.errors import DataError
stop = sys.argv[3]
def progress(stage, done, total):
    print(stage, flush=True)
    while stage == stop:
        time.sleep(0.05)
source = TextSource(paths=(sys.argv[1],))
config = DataConfig(source=source, tokenizer=BytesTokenizer(), sequence_length=8, validation_fraction=0.2)
try:
    prepared = prepare(config, cache_dir=Path(sys.argv[2]), progress=progress)
except DataError as error:
    sys.exit(f"DataError: {error}")
print("sum", sum(map(int, prepared.train.tokens)))
"""


class Ranks:
    """Processes as torchrun starts them, on an empty cache."""

    def __init__(self, folder: Path) -> None:
        (folder / "tmp").mkdir()
        (folder / "text").mkdir()
        for number in range(30):
            (folder / "text" / f"{number}.txt").write_text(f"document {number}\n" * (number + 1))
        self.folder = folder
        self.begun: list[subprocess.Popen[str]] = []

    def start(self, rank: int, stop: str = "", *, alone: bool = False) -> subprocess.Popen[str]:
        launch = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(self.folder / "text" / "*.txt"), str(self.folder / "cache"), stop],
            env=os.environ | {"TMPDIR": str(self.folder / "tmp")} | ({} if alone else launch),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.begun.append(process)
        return process


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    made = Ranks(tmp_path)
    yield made
    for process in made.begun:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], stage: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == stage:
            return
    pytest.fail(f"{stage} never came")


def test_two_ranks_read_the_text_once(ranks: Ranks) -> None:
    other, first = ranks.start(1), ranks.start(0)
    stages, total = (process.communicate(timeout=60)[0].split() for process in (first, other))
    assert {"read", "tokenize"} <= set(stages)
    assert set(total) <= {"wait", "sum", stages[-1]}
    assert stages[-1] == total[-1]
    assert [path.name[0] != "." for path in (ranks.folder / "cache").iterdir()] == [True]


def test_a_rank_takes_over_from_one_that_is_killed(ranks: Ranks) -> None:
    first = ranks.start(0, "tokenize")
    wait_for(first, "tokenize")
    other = ranks.start(1)
    wait_for(other, "wait")
    first.send_signal(signal.SIGKILL)
    out, errors = other.communicate(timeout=60)
    assert (other.returncode, errors) == (0, "")
    assert {"read", "tokenize", "sum"} <= set(out.split())
    whole = sum(sum(f"document {n}\n".encode() * (n + 1)) for n in range(30))
    assert 0 < int(out.split()[-1]) < whole + 30 * 256


def test_what_is_wrong_is_found_once_and_said_by_all(ranks: Ranks) -> None:
    (ranks.folder / "text" / "bad.txt").write_bytes(b"\xff")
    first, other = ranks.start(0), ranks.start(1)
    said = [process.communicate(timeout=60) for process in (first, other)]
    assert [process.returncode for process in (first, other)] == [1, 1]
    assert said[0][1] == said[1][1]
    assert "bad.txt:1: not UTF-8" in said[0][1]
    assert "read" not in said[1][0].split()


def test_processes_apart_wait_for_the_entry_only(ranks: Ranks) -> None:
    first = ranks.start(0, "tokenize", alone=True)
    wait_for(first, "tokenize")
    other = ranks.start(0, alone=True)
    wait_for(other, "wait")
    first.send_signal(signal.SIGKILL)
    assert "tokenize" in other.communicate(timeout=60)[0].split()


def test_each_call_is_worked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    done: list[str] = []

    def call(name: str) -> dict[str, object]:
        return machine.once_a_launch([name], lambda: done.append(name) or {"number": len(done)}, print)

    assert [call("a"), call("a"), call("b")] == [{"number": 1}, {"number": 2}, {"number": 3}]
    machine._calls.clear()  # another process of the launch
    assert [call("a"), call("a"), call("b")] == [{"number": 1}, {"number": 2}, {"number": 3}]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    machine._calls.clear()
    assert call("a") == {"number": 4}


def test_launches_with_the_same_number_are_told_apart() -> None:
    now = machine._started(os.getpid())
    time.sleep(0.02)
    with subprocess.Popen(["sleep", "60"]) as later:
        assert int(machine._started(later.pid)) > int(now) == int(machine._started(os.getpid()))
        later.kill()


def test_an_error_that_is_not_of_the_text_is_each_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def fail() -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        machine.once_a_launch(["a"], fail, print)
    machine._calls.clear()
    assert machine.once_a_launch(["a"], lambda: {"number": 1}, print) == {"number": 1}
    machine._calls.clear()
    assert machine.once_a_launch(["a"], fail, print) == {"number": 1}


def test_a_first_rank_that_never_begins_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "_HEAD_START", 0.2)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    assert machine.once_a_launch(["late"], lambda: {}, print) == {}
    assert 0.2 <= time.monotonic() - began < 20
    with pytest.raises(DataError, match="words"):
        machine.once_a_launch(["other"], raise_words, print)


def test_what_was_left_long_ago_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"mixerzoo-{os.getuid()}"
    folder.mkdir(mode=0o700)
    names = ["a.lock", "a.begun", "a.json", ".a.json.0.partial", "b", "b.lock", "held.lock", "young.lock", "young.json"]
    long_ago = time.time() - 8 * 24 * 3600
    for name in names:
        (folder / name).touch()
        if name != "young.json":
            os.utime(folder / name, (long_ago, long_ago))
    with FileLock(folder / "held.lock"):
        os.utime(folder / "held.lock", (long_ago, long_ago))
        assert machine.shared_folder() == folder
    assert {path.name for path in folder.iterdir()} == {"held.lock", "young.lock", "young.json"}
    with machine.locked(folder / "young", print):
        assert (folder / "young.lock").stat().st_mtime > long_ago


def raise_words() -> dict[str, object]:
    raise DataError("words")
