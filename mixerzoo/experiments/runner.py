"""Runs cells: each in a process of its own, some at a time, none twice."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from mixerzoo import files
from mixerzoo.errors import RunError
from mixerzoo.experiments.devices import Turns, visible_devices
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell


class Watcher(Protocol):
    """What hears how cells go."""

    def planned(self, cells: Sequence[Cell], finished: Sequence[Cell]) -> None:
        """So many cells are next, of which some were finished before."""

    def began(self, cell: Cell) -> None:
        """The process of a cell is started."""

    def step(self, cell: Cell, step: int, loss: float | None, *, first: bool) -> None:
        """A step is done; ``first``: by an earlier process."""

    def ended(self, cell: Cell, error: str | None, result: Mapping[str, Any] | None) -> None:
        """A cell is finished, or failed with an error."""


@dataclass(frozen=True)
class Workers:
    """What cells run on.

    Attributes:
        jobs: how many run at a time.
        threads: of each.
        devices: of one kind, from `find_devices`, which cells take in turn; empty: what `mixerzoo train` takes.
        command: what is recorded as having started them.
    """

    jobs: int = 1
    threads: int = 1
    devices: tuple[str, ...] = ()
    command: str = ""


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen[str]
    device: str | None = None
    error: str | None = None
    full: bool = False
    reader: threading.Thread = field(init=False)


def run_cells(
    cells: Sequence[Cell],
    directory: ComparisonDirectory,
    workers: Workers,
    watcher: Watcher,
    failed: dict[Cell, str],
) -> None:
    """Run what is not finished yet.

    Args:
        cells: in the order in which they begin.
        directory: holds their run directories.
        workers: what they run on.
        watcher: hears of it.
        failed: is given the cells that fail, each with its error, also where this is interrupted.

    Raises:
        RunError: the disk is full.
        OSError: a file cannot be written.
        KeyboardInterrupt: Ctrl-C, after the processes have saved their checkpoints.
    """
    finished = [cell for cell in cells if directory.run(cell).finished]
    watcher.planned(cells, finished)
    waiting = deque(cell for cell in cells if cell not in finished)
    free, turns = deque(range(workers.jobs)), Turns(workers.devices)
    running: dict[int, _Job] = {}
    events: SimpleQueue[tuple[int, dict[str, Any] | None]] = SimpleQueue()
    try:
        while waiting or running:
            while waiting and free:
                slot, cell = free.popleft(), waiting.popleft()
                running[slot] = _start(cell, directory, workers, turns.take(), slot, events)
                watcher.began(cell)
            slot, event = events.get()
            job = running[slot]
            if event is not None:
                _hear(job, event, watcher)
                continue
            del running[slot]
            free.append(slot)
            turns.give_back(job.device)
            error = _end(job, directory)
            result = None if error is not None else directory.run(job.cell).result()
            if error is not None:
                failed[job.cell] = error
            watcher.ended(job.cell, error, result)
            if job.full:
                raise RunError(f"the disk is full: {error}\nmake room; the same command then goes on")
    finally:
        _stop(list(running.values()))


def _start(
    cell: Cell, directory: ComparisonDirectory, workers: Workers, device: str | None, slot: int, events: Any
) -> _Job:
    recipe, log = directory.beside(cell, ".yaml"), directory.beside(cell, ".log")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(recipe, cell.recipe.to_yaml())
    place = directory.path / cell.place
    module = [sys.executable, "-P", "-m", "mixerzoo.experiments.child"]
    with log.open("a", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*module, str(recipe), str(place), workers.command, directory.name_of(cell)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            encoding="utf-8",
            env=_environment(workers.threads, device),
            # Ctrl-C is for the comparison, which tells its runs.
            process_group=0,
        )
    job = _Job(cell, process, device)
    job.reader = threading.Thread(target=_read, args=(process, slot, events), daemon=True)
    job.reader.start()
    return job


def _environment(threads: int, device: str | None) -> dict[str, str]:
    found = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if device is not None:
        found["CUDA_VISIBLE_DEVICES"] = visible_devices(device)
    return found


def _read(process: subprocess.Popen[str], slot: int, events: Any) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        # A process that is killed may leave half a line.
        if line.endswith("\n"):
            events.put((slot, json.loads(line)))
    events.put((slot, None))


def _hear(job: _Job, event: Mapping[str, Any], watcher: Watcher) -> None:
    if "error" in event:
        job.error = event["error"]
        job.full = event["number"] == errno.ENOSPC or os.strerror(errno.ENOSPC) in event["error"]
    else:
        watcher.step(job.cell, event["step"], event.get("loss"), first=bool(event.get("first")))


def _end(job: _Job, directory: ComparisonDirectory) -> str | None:
    """Wait for a process; its error in words, or None where the run is finished."""
    code = job.process.wait()
    for stream in (job.process.stdin, job.process.stdout):
        if stream is not None:
            stream.close()
    if code == 0 and directory.run(job.cell).finished:
        return None
    if job.error is not None:
        return job.error
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return (
        f"the process {how}; see {directory.beside(job.cell, '.log')}{_last_line(directory.beside(job.cell, '.log'))}"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return f": {said[-1].strip()[:300]}" if said else ""


def _stop(jobs: Sequence[_Job]) -> None:
    """Ask processes to save and end, and wait for them; a second Ctrl-C ends them at once."""
    try:
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.process.wait()
    except KeyboardInterrupt:
        for job in jobs:
            job.process.kill()
            job.process.wait()
        raise
