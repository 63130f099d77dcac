"""Weights and optimizer state of a sharded run on the disk: each process writes its share.

By `torch.distributed.checkpoint`, in safetensors, so that nothing is unpickled and any number of processes can read
what any other number wrote: ``shard-R-model-00001-of-00002.safetensors`` has weights of process R, and
``…-00002-of-00002`` the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import WriteResult
from torch.optim import Optimizer

from mixerzoo.errors import RunError
from mixerzoo.files import sha256, to_json, write_text
from mixerzoo.model import Decoder

_WEIGHT, _STATE = "weight.", "optimizer."
#: Ends the name of a file in which a process leaves the checksums of its share.
SUMS = ".sums.json"


class _Writer(HuggingFaceStorageWriter):
    """Has each process, which is at its files anyway, say what their checksums are."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        written = super().write_data(plan, planner)
        folder = Path(self.path)
        names = {result.storage_data.relative_path for result in written.wait()}
        if names:
            sums = {name: sha256(folder / name) for name in sorted(names)}
            write_text(folder.parent / f"{min(names)}{SUMS}", to_json(sums))
        return written


class Writing:
    """The share of every process on its way to the disk; all of them must make one.

    Args:
        decoder: sharded, between two steps.
        optimizer: over its parameters.
        folder: of the checkpoint, alone in a folder of its own, in which the checksums of the shares are left.
        group: by which the processes agree while training goes on; None: all is written at once.

    Raises:
        RunError: a process could not write.
    """

    def __init__(
        self, decoder: Decoder, optimizer: Optimizer, folder: Path, group: dist.ProcessGroup | None = None
    ) -> None:
        self._folder = folder
        self._future: Future[Any] | None = None
        tensors = _tensors(decoder, optimizer)
        with self._in_words():
            if group is None:
                save(tensors, storage_writer=_writer(folder, tensors))
                return
            # What is on the CPU would not be copied before the next step changes it.
            held = {name: tensor.clone() if tensor.device.type == "cpu" else tensor for name, tensor in tensors.items()}
            found = async_save(held, storage_writer=_writer(folder, tensors), process_group=group)
            assert isinstance(found, Future)
            self._future = found

    @property
    def done(self) -> bool:
        """Whether all processes have written, or one could not."""
        return self._future is None or self._future.done()

    def finish(self) -> None:
        """Wait for it.

        Raises:
            RunError: a process could not write.
        """
        if self._future is not None:
            with self._in_words():
                self._future.result()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except CheckpointException as error:
            rank, reason = _first(error)
            what = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
            raise RunError(f"{self._folder}: process {rank} could not write its share: {what}") from error


def _first(error: CheckpointException) -> tuple[int, Any]:
    rank, failure = next(iter(error.failures.items()))
    return rank, failure[0] if isinstance(failure, tuple) else failure


def _writer(folder: Path, tensors: dict[str, Tensor]) -> _Writer:
    file = {name: 1 if name.startswith(_WEIGHT) else 2 for name in tensors}
    return _Writer(str(folder), file, save_distributed=True)


def load_weights(decoder: Decoder, folder: Path) -> None:
    """Read this process's share of the weights, whatever number of processes wrote them.

    Args:
        decoder: sharded; changed in place.
        folder: of the checkpoint.

    Raises:
        RunError: they are not those of this decoder, or cannot be read.
    """
    _load({_WEIGHT + name: tensor for name, tensor in _weights(decoder).items()}, folder)


def load_optimizer(decoder: Decoder, optimizer: Optimizer, folder: Path, rates: Sequence[float]) -> None:
    """Read this process's share of the optimizer's state.

    Args:
        decoder: sharded.
        optimizer: over its parameters, before its first step; changed in place.
        folder: of the checkpoint.
        rates: the learning rate of each group, by the schedule.

    Raises:
        RunError: the state is not that of this optimizer, or cannot be read.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    names = _names(decoder)
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for key, stored in _stored(folder).items():
        if not key.startswith(_STATE):
            continue
        name, _, field = key.removeprefix(_STATE).rpartition(".")
        if name not in parameters:
            raise RunError(f"{folder}: has the state of {name!r}, which is no parameter of the decoder")
        parameter = parameters[name]
        optimizer.state[parameter][field] = _empty(stored, parameter, f"{folder}: {field} of {name}")
    _load(_states(decoder, optimizer), folder)


def _empty(stored: TensorStorageMetadata, parameter: Tensor, what: str) -> Tensor:
    """A tensor to read into: sharded as its parameter, or a single number."""
    if tuple(stored.size) == tuple(parameter.shape):
        return torch.zeros_like(parameter, dtype=stored.properties.dtype)
    if tuple(stored.size) == ():
        return torch.zeros((), dtype=stored.properties.dtype)
    raise RunError(f"{what} is {tuple(stored.size)}; it must be {tuple(parameter.shape)}")


def _tensors(decoder: Decoder, optimizer: Optimizer) -> dict[str, Tensor]:
    weights = {_WEIGHT + name: tensor for name, tensor in _weights(decoder).items()}
    return weights | _states(decoder, optimizer)


def _weights(decoder: Decoder) -> dict[str, Tensor]:
    # Without the second name of what is tied.
    return {name: parameter.detach() for name, parameter in decoder.named_parameters()}


def _states(decoder: Decoder, optimizer: Optimizer) -> dict[str, Tensor]:
    names = _names(decoder)
    return {
        f"{_STATE}{names[id(parameter)]}.{field}": value
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def _names(decoder: Decoder) -> dict[int, str]:
    return {id(parameter): name for name, parameter in decoder.named_parameters()}


def _stored(folder: Path) -> dict[str, Any]:
    return dict(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def _load(tensors: dict[str, Tensor], folder: Path) -> None:
    stored = _stored(folder)
    for name, tensor in tensors.items():
        found = stored.get(name)
        if found is None or tuple(found.size) != tuple(tensor.shape):
            is_there = "has no" if found is None else f"has another shape ({tuple(found.size)}) of"
            raise RunError(f"{folder}: {is_there} {name.partition('.')[2]}: it is of another decoder than the recipe's")
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise RunError(f"{folder}: cannot be read: {_first(error)[1]}") from error
