"""The processes of a run: what the number of those that train changes, and what is said when one is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mixerzoo.errors import DataError, RunError
from mixerzoo.files import MANIFEST_FILE, read_manifest
from mixerzoo.process import launch
from mixerzoo.recipe import Recipe, sequences_per_step

#: What gloo, NCCL and their sockets say of a process that is gone.
_LOST = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "recvValue", "timed out", "Timed out")


def launched() -> bool:
    """Whether a launcher started this process, be it alone: torchrun, or whoever set the variables of several."""
    return launch().world_size > 1 or dist.is_torchelastic_launched()


def take_device() -> None:
    """Have this process compute on its own GPU, where there are any; else each would begin on the first.

    Raises:
        RunError: there are fewer GPUs than processes on this machine.
    """
    if not torch.cuda.is_available():
        return
    own, count = launch().local_rank, torch.cuda.device_count()
    if own >= count:
        raise RunError(
            f"each process trains on a GPU of its own, and process {own} (from 0) of this machine has none of its "
            f"{count}; start at most as many (torchrun --nproc-per-node {count})"
        )
    torch.cuda.set_device(own)


def idle_gpus() -> list[str]:
    """What is said where one process leaves other GPUs idle."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2 or launched():
        return []
    return [f"{count} GPUs are here, and one is used; torchrun --nproc-per-node {count} -m mixerzoo train … uses all."]


@cache
def meeting() -> Store:
    """Where the processes of this start meet; kept, for the first one may serve it to those that still ask.

    torchrun keeps one store for all its restarts, in which the addresses of processes that are gone still stand.
    """
    store, _, _ = next(rendezvous("env://"))
    assert isinstance(store, Store)
    return PrefixStore(f"mixerzoo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def step_in_words(recipe: Recipe, processes: int) -> str:
    """What one step of a run of several processes sees.

    Args:
        recipe: of the run.
        processes: how many train.
    """
    train, sequences = recipe.train, sequences_per_step(recipe, processes)
    parts = f"{processes} processes × train.batch_size {train.batch_size} × train.accumulation {train.accumulation}"
    return f"Each of {train.steps} steps sees {sequences} sequences: {parts}."


def check_step(folder: Path, saved: Recipe, recipe: Recipe, processes: int) -> str | None:
    """Refuse to go on with steps of another size.

    Args:
        folder: of the checkpoint that training goes on from.
        saved: the run's recipe.
        recipe: as given now.
        processes: how many train now.

    Returns:
        What is worth a line: that their number is another one.

    Raises:
        RunError: a step would see another number of sequences than before.
    """
    if not (folder / MANIFEST_FILE).exists():
        return None
    manifest, now = read_manifest(folder), sequences_per_step(recipe, processes)
    then = manifest.get("processes", processes)
    before = manifest.get("sequences", sequences_per_step(saved, then))
    if before != now:
        raise RunError(
            f"{folder}: was saved by a run of {_count(then)} whose steps saw {before} sequences, and those of this one "
            f"({_count(processes)}, train.batch_size {recipe.train.batch_size}, train.accumulation "
            f"{recipe.train.accumulation}) would see {now}; {_advice(recipe, processes, before)}"
        )
    return None if then == processes else f"Going on with {_count(processes)} where there were {then}."


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _advice(recipe: Recipe, processes: int, sequences: int) -> str:
    each = recipe.train.batch_size * processes
    if sequences % each == 0:
        return f"set train.accumulation={sequences // each}"
    if sequences % processes == 0:
        return f"set train.batch_size and train.accumulation so that their product is {sequences // processes}"
    return f"go on with a number of processes that divides {sequences}"


@contextmanager
def losses_in_words() -> Iterator[None]:
    """Turn what a process says that waits in vain for another one into words.

    Raises:
        RunError: the connection to another process of the run is lost.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if launch().world_size == 1 or not (isinstance(error, dist.DistError) or any(sign in text for sign in _LOST)):
            raise
        reason = text.splitlines()[0].partition(". This is")[0] if text else type(error).__name__
        raise RunError(
            f"another process of the run has ended, or cannot be reached any more, so this one ends too; what it said "
            f"stands above, if it could say anything\n--resume goes on from the newest checkpoint ({reason})"
        ) from error


@contextmanager
def loader_in_words() -> Iterator[None]:
    """Turn what becomes of a process of ``data.loader_workers`` into words.

    Raises:
        RunError: it was killed.
        DataError: it could not read the text.
    """
    try:
        yield
    except DataError as error:
        text = str(error)
        if "in DataLoader worker process" not in text:
            raise
        # The traceback of the other process comes first.
        raise DataError(text.rpartition(f"{DataError.__name__}: ")[2]) from error
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker"):
            raise
        raise RunError(
            f"a process of data.loader_workers is gone ({text.splitlines()[0].rstrip('. ')}): where memory or /dev/shm "
            "is short, lower data.loader_workers\n--resume goes on from the newest checkpoint"
        ) from error
