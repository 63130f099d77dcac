"""Kills runs, and cuts the power of the disk that they write to, at random moments; then they go on.

    python tools/kills.py kills 100
    python tools/kills.py cuts 20
    python tools/kills.py processes 10

A run is killed (`kill -9`) before a file operation that is drawn, the first and the last included, or at a moment that
is drawn; a third of the resumed runs is killed once more. The power is cut by stopping a run that writes to an ext4
image, copying the image and mounting the copy: what was not synced is not in it. The image commits its journal every
second and delays allocation (`noauto_da_alloc`), as hard a case as ext4 is; mounting takes root. Of two processes of a
run, `ddp` and `fsdp` in turn, one is killed at a moment that is drawn; the other must end within a minute, and every
second pair of times torchrun starts both again. Each run that went on must have the bits of one that was left alone.
Prints a line of JSON; exits with 1 where a run has other bits.

Runs of one process are forks of one that has imported everything, so that each takes a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch

import mixerzoo.training.run
from mixerzoo import files

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from runs import fingerprint, tiny_recipe

OVERRIDES = ("train.checkpoint_interval=3",)
#: What torchrun runs.
JOB = Path(__file__).parents[1] / "tests" / "support" / "parallel_job.py"
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}


def fork(directory: Path, *, at: int | None = None, do: signal.Signals = signal.SIGKILL, log: Path) -> int:
    """Train into a directory in a fork; it signals itself before its file operation number ``at``.

    Exits with 0, or with 1 where training failed; ``log`` then says how. In ``log``.count is how many operations there
    were.
    """
    process = os.fork()
    if process:
        return process
    try:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in _EVENTS and str(arguments[0]).startswith(str(directory)):
                if count == at:
                    os.kill(os.getpid(), do)
                count += 1

        sys.addaudithook(hook)
        mixerzoo.training.run.train(tiny_recipe(*OVERRIDES), directory, resume=directory.exists())
        done = count
        log.with_suffix(".count").write_text(str(done))
    except BaseException:  # noqa: BLE001  a fork must not go on with what its parent does
        log.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def finish(directory: Path, log: Path) -> str | None:
    """Let a run go to its end; what went wrong, if anything did."""
    _, status = os.waitpid(fork(directory, log=log), 0)
    if status:
        return log.read_text() if log.exists() else f"status {status}"
    left = [path.name for path in directory.rglob(".*")]
    return f"left behind: {left}" if left else None


class Trials:
    """Runs in a place of their own, against one that is left alone."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.log = place, place / "log.txt"
        self.draw = random.Random(seed)
        began = time.monotonic()
        reference = place / "reference"
        wrong = finish(reference, self.log)
        assert wrong is None, wrong
        self.seconds = time.monotonic() - began
        self.expected = fingerprint(reference)
        self.operations = int(self.log.with_suffix(".count").read_text())

    def moment(self, number: int) -> int | None:
        """The file operation to strike before; None: at a time that is drawn."""
        if number % 4 == 0:
            return self.draw.choice([0, 1, 2, 3])
        if number % 4 == 1:
            return self.operations - 1 - self.draw.randrange(6)
        return self.draw.randrange(self.operations) if number % 4 == 2 else None

    def strike(self, directory: Path, at: int | None, do: signal.Signals) -> int:
        """Start a run and signal it at a moment; the process, unless it came to its end before."""
        process = fork(directory, at=at, do=do, log=self.log)
        if at is None:
            time.sleep(self.draw.uniform(0, self.seconds))
            os.kill(process, do)
        _, status = os.waitpid(process, os.WUNTRACED)
        assert os.WIFSIGNALED(status) or os.WIFSTOPPED(status) or status == 0, self.log.read_text()
        return process if os.WIFSTOPPED(status) else 0

    def compare(self, directory: Path) -> str | None:
        """Go on to the end; how that differs from the run that was left alone."""
        wrong = finish(directory, self.log)
        if wrong is None and fingerprint(directory) != self.expected:
            return "other bits"
        return wrong

    def kill(self, number: int) -> str | None:
        directory = self.place / f"killed-{number}"
        self.strike(directory, self.moment(number), signal.SIGKILL)
        if number % 3 == 0:
            self.strike(directory, self.draw.randrange(self.operations), signal.SIGKILL)
        wrong = self.compare(directory)
        shutil.rmtree(directory)
        return wrong

    def cut(self, number: int) -> str | None:
        image, copy = self.place / "disk.img", self.place / "copy.img"
        with image.open("wb") as stream:
            stream.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        with ExitStack() as mounts:
            disk = mount(image, self.place / "disk", mounts, "commit=1,noauto_da_alloc")
            process = self.strike(disk / "run", self.moment(number), signal.SIGSTOP)
            shutil.copyfile(image, copy)
            if process:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        with ExitStack() as mounts:
            disk = mount(copy, self.place / "disk", mounts, "noatime")
            return self.compare(disk / "run")


class Launches:
    """Runs of two processes, in a place of their own, each kind against one that is left alone."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.draw = place, random.Random(seed)
        self.expected: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        for kind in ("ddp", "fsdp"):
            began = time.monotonic()
            assert self.launch(place / kind, kind).wait() == 0, self.log(place / kind)
            self.seconds[kind] = time.monotonic() - began
            self.expected[kind] = fingerprint(place / kind)

    def log(self, directory: Path) -> str:
        return directory.with_suffix(".log").read_text()

    def launch(self, directory: Path, kind: str, restarts: int = 0) -> subprocess.Popen[bytes]:
        """Begin a run, or go on with it."""
        options = ["--nproc-per-node=2", "--standalone", f"--max-restarts={restarts}"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, str(JOB), "train", str(directory), "0"]
        overrides = (*OVERRIDES, f"train.parallel={kind}", "train.batch_size=2")
        with directory.with_suffix(".log").open("ab") as log:
            return subprocess.Popen([*command, *overrides], stdout=log, stderr=log)

    def kill(self, number: int) -> str | None:
        kind, restarts = ("ddp", "fsdp")[number % 2], number // 2 % 2
        directory = self.place / f"killed-{number}"
        launched = self.launch(directory, kind, restarts)
        time.sleep(self.draw.uniform(0, self.seconds[kind]))
        while launched.poll() is None and len(processes := psutil.Process(launched.pid).children()) < 2:
            time.sleep(0.05)
        if launched.poll() is None:
            self.draw.choice(processes).kill()
        try:
            status = launched.wait(60 + restarts * 2 * self.seconds[kind])
        except subprocess.TimeoutExpired:
            launched.terminate()
            return f"the other process goes on: {self.log(directory)}"
        if status and restarts:
            return f"torchrun did not bring it to its end: {self.log(directory)}"
        if self.launch(directory, kind).wait():
            return self.log(directory)
        return None if fingerprint(directory) == self.expected[kind] else "other bits"


def mount(image: Path, place: Path, mounts: ExitStack, options: str) -> Path:
    """Mount an image until the mounts are given back."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", f"loop,{options}", image, place], check=True, stderr=subprocess.PIPE)
    mounts.callback(subprocess.run, ["umount", place], check=True)
    return place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["kills", "cuts", "processes"])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-sync", action="store_true", help="to see that cuts are noticed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.without_sync:
        files.sync = lambda path: None
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("MIXERZOO_CACHE", str(Path(place, "cache")))
        trial: Callable[[int], str | None]
        if arguments.what == "processes":
            trial = Launches(Path(place), arguments.seed).kill
        else:
            trials = Trials(Path(place), arguments.seed)
            trial = trials.kill if arguments.what == "kills" else trials.cut
        wrong = {}
        for number in range(arguments.count):
            found = trial(number)
            if found is not None:
                wrong[number] = found
                print(number, found, file=sys.stderr, flush=True)
    print(json.dumps({"what": arguments.what, "count": arguments.count, "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
