"""What a checkpoint has of each process: its random numbers, its loss since the last log line, its records.

Where another number of processes goes on, all begin with the mean of the losses and the records of the first; random
numbers go on from the run's seed, for nothing in a step draws any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixerzoo.errors import RunError
from mixerzoo.files import MANIFEST_FILE, read_manifest
from mixerzoo.training.state import read_state

_KINDS: dict[str, Any] = {"random": dict, "loss": Tensor, "logged": int, "records": dict}


def process_file(folder: str | Path, number: int, count: int) -> Path:
    """Where a checkpoint has the state of one process.

    Args:
        folder: of the checkpoint.
        number: of the process.
        count: of all.
    """
    return Path(folder, "rng_state.pth" if count <= 1 else f"rng_state_{number}.pth")


def process_state(folder: Path, number: int, count: int, step: int) -> tuple[dict[str, Any], Path]:
    """What one process goes on from, and the file that it is from.

    Args:
        folder: of the checkpoint.
        number: of the process.
        count: of all that go on.
        step: after which the checkpoint was taken.

    Returns:
        ``random`` (None: of the seed), ``loss``, ``logged`` and ``records``; and a file for messages.

    Raises:
        RunError: a file cannot be read, or holds something else.
    """
    then = read_manifest(folder).get("processes") if (folder / MANIFEST_FILE).exists() else count
    if then == count or not isinstance(then, int):
        path = process_file(folder, number, count)
        return _read(path, step), path
    paths = [process_file(folder, other, then) for other in range(then)]
    states = [_read(path, step) for path in paths]
    loss = torch.stack([state["loss"] for state in states]).mean()
    return {**states[0], "loss": loss, "random": None}, paths[0]


def _read(path: Path, step: int) -> dict[str, Any]:
    state = read_state(path)
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in _KINDS.items()):
        raise RunError(f"{path}: holds no state of a process that trains; remove the checkpoint")
    if state["loss"].shape != () or not 0 <= state["logged"] <= step:
        raise RunError(f"{path}: damaged: the loss since the last log line; remove the checkpoint")
    return state
