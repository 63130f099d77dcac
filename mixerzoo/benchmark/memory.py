"""Bytes that autograd keeps, and the most that tensors take at once."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Held:
    """A tensor that autograd keeps for the backward."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached: a node that kept its own output would keep itself.
        self.tensor = tensor.detach()


def kept_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps between a forward and its backward.

    Each storage counts once, however many tensors view it. Copies of parameters that autocast makes do count.

    Args:
        forward: computes what a backward could start from.
        parameters: whose storages do not count.
    """
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        kept = _Held(tensor)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = forward()
    storages = {storage.data_ptr(): storage.nbytes() for storage in (kept.tensor.untyped_storage() for kept in held)}
    for parameter in parameters:
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    del result  # until here the graph was alive
    return sum(storages.values())


class Peak:
    """The most bytes that tensors took at once, beyond those there were before; None where that is not known."""

    bytes: int | None = None


@contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of what runs within: of a GPU's allocator, or of every allocation on a CPU.

    Args:
        device: whose memory.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu":
        with _silent_profiler() as profiler:
            yield found
        found.bytes = _highest(profiler)
    else:
        yield found


@contextmanager
def _silent_profiler() -> Iterator[Any]:
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = "99"  # it prints when it starts and ends
    try:
        with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
            yield profiler
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _highest(profiler: Any) -> int:
    """The highest sum of the bytes that were taken and given back, in the order of time."""
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest
