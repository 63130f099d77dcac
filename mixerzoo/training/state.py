"""What a checkpoint holds beside the weights: written to the disk in words, and checked before it is believed.

Nothing is unpickled but tensors and plain values (``weights_only``), and nothing reaches the optimizer before its keys,
shapes and dtypes are those of the decoder: the fused kernel would read past the end of a tensor that is too small.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerState

from mixerzoo import files
from mixerzoo.errors import RunError
from mixerzoo.files import read_object
from mixerzoo.recipe import Kept
from mixerzoo.runs import STATE_FILE

_ADVICE = "remove the checkpoint, and --resume goes on from the one before it"


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn what torch and the system say when a file cannot be written into words.

    Args:
        path: the file, or the folder of several.

    Raises:
        RunError: torch could not write.
        OSError: another writer could not; it names the path.
    """
    try:
        with files.named(path):
            yield
    except RuntimeError as error:
        # torch.save has no error of its own for a disk that is full or a folder that is gone.
        text = str(error)
        if not any(sign in text for sign in ("inline_container", "PytorchStreamWriter", "Parent directory")):
            raise
        what = "is its folder gone?" if "Parent directory" in text else "is the disk full?"
        raise RunError(f"{path}: cannot be written; {what}") from error


def read_state(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, and plain values in plain containers.

    Raises:
        RunError: the file cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path}: damaged: {reason}; {_ADVICE}") from error


def check_trainer_state(folder: Path, step: int) -> None:
    """Refuse a ``trainer_state.json`` that Trainer would trip over or believe.

    Raises:
        RunError: it cannot be read, or is not that of the step.
    """
    path = folder / STATE_FILE
    state = read_object(path, RunError, _ADVICE)
    unknown = state.keys() - {field.name for field in fields(TrainerState)}
    if unknown:
        raise RunError(f"{path}: has {sorted(unknown)[0]!r}, which this version of transformers does not know")
    if state.get("global_step") != step:
        raise RunError(f"{path}: is that of step {state.get('global_step')}, and not of {step}; {_ADVICE}")
    kinds: dict[str, Any] = {
        "log_history": list,
        "stateful_callbacks": dict,
        "epoch": (int, float),
        "total_flos": (int, float),
    }
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise RunError(f"{path}: damaged: {key} is {state.get(key)!r}; {_ADVICE}")


def check_optimizer(
    state: Any,
    optimizer: Optimizer,
    path: Path,
    step: int,
    kept: Mapping[int, Mapping[str, Kept]],
    *,
    may_lag: bool = False,
) -> None:
    """Refuse a state that is not this optimizer's.

    Args:
        state: from `read_state`.
        optimizer: as it is before its first step.
        path: for messages.
        step: after which the state was taken.
        kept: id of a parameter → what the optimizer keeps of it.
        may_lag: whether steps may have been skipped, be it all of them, as those whose gradients overflow float16.

    Raises:
        RunError: keys, shapes or dtypes are others.
    """
    fresh = optimizer.state_dict()
    if not isinstance(state, dict) or state.keys() != fresh.keys() or not isinstance(state["state"], dict):
        raise RunError(f"{path}: holds no optimizer's state; {_ADVICE}")
    _check_groups(state["param_groups"], fresh["param_groups"], path)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    untouched = not state["state"] and not may_lag
    if untouched or not all(index in range(len(parameters)) for index in state["state"]):
        raise RunError(f"{path}: is the state of other parameters than the decoder has; {_ADVICE}")
    for index, moments in state["state"].items():
        _check_moments(moments, kept[id(parameters[index])], f"{path}: parameter {index}", step, may_lag)


def _check_groups(groups: Any, fresh: list[dict[str, Any]], path: Path) -> None:
    if not isinstance(groups, list) or len(groups) != len(fresh):
        raise RunError(f"{path}: has other groups of parameters than the decoder; {_ADVICE}")
    for group, expected in zip(groups, fresh, strict=True):
        if not isinstance(group, dict) or group.keys() != expected.keys():
            raise RunError(f"{path}: has other options than the optimizer; {_ADVICE}")
        for key, value in expected.items():
            # The rate follows the schedule.
            right = _is_rate(group[key]) if key == "lr" else _equal(group[key], value)
            if not right:
                raise RunError(f"{path}: {key} is {group[key]!r}, and the recipe's is {value!r}; {_ADVICE}")


def _check_moments(moments: Any, expected: Mapping[str, Kept], what: str, step: int, may_lag: bool) -> None:
    if not isinstance(moments, dict) or moments.keys() != expected.keys():
        raise RunError(f"{what}: has no state of this optimizer, which is {', '.join(expected)}; {_ADVICE}")
    for name, (shape, dtype) in expected.items():
        value = moments[name]
        if dtype == torch.int64:
            right = type(value) is int
        else:
            right = isinstance(value, Tensor) and tuple(value.shape) == shape and value.dtype == dtype
        if not right:
            found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise RunError(f"{what}: {name} is {found}; it must be {shape} {dtype}; {_ADVICE}")
    if "step" in expected and not (0 if may_lag else 1) <= float(moments["step"]) <= step:
        raise RunError(f"{what}: has taken {float(moments['step']):g} steps, and the run {step}; {_ADVICE}")


def check_scheduler(state: Any, fresh: Mapping[str, Any], path: Path, step: int, *, may_lag: bool = False) -> None:
    """Refuse a state that is not this schedule's.

    Args:
        state: from `read_state`.
        fresh: the state of the schedule before its first step.
        path: for messages.
        step: after which the state was taken.
        may_lag: as in `check_optimizer`.

    Raises:
        RunError: it is another schedule's, or another step's.
    """
    if not isinstance(state, dict) or state.keys() != fresh.keys():
        raise RunError(f"{path}: holds no state of this schedule; {_ADVICE}")
    done = state["last_epoch"]
    in_time = type(done) is int and (0 <= done <= step if may_lag else done == step)
    if state["base_lrs"] != fresh["base_lrs"] or not in_time:
        raise RunError(f"{path}: is the state of another learning rate or step; {_ADVICE}")
    rates = state["_last_lr"]
    if not isinstance(rates, list) or len(rates) != len(fresh["_last_lr"]) or not all(map(_is_rate, rates)):
        raise RunError(f"{path}: damaged: _last_lr is {rates!r}; {_ADVICE}")


def _equal(found: Any, value: Any) -> bool:
    return type(found) is type(value) and bool(found == value)


def _is_rate(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def random_state() -> dict[str, Any]:
    """The state of every generator of random numbers of this process, in plain values."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    key = {"key": [int(word) for word in numpy["state"]["key"]]}
    states = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], **key}},
        "torch": torch.get_rng_state(),
    }
    return {**states, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def set_random_state(state: Mapping[str, Any], path: Path) -> None:
    """Go on with the random numbers of `random_state`.

    Args:
        state: its value.
        path: for messages.

    Raises:
        RunError: it is none.
    """
    try:
        random.setstate(state["python"])
        numpy = state["numpy"]
        np.random.set_state({**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}})
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available() and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise RunError(f"{path}: holds no state of random numbers: {error}; {_ADVICE}") from error
