"""Bytes that a forward keeps for its backward, and the most that tensors take at once."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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


def kept_bytes(forward: Callable[[], Tensor], device: torch.device) -> int | None:
    """Bytes that are kept between a forward and its backward: what the forward made and its graph keeps alive.

    Each storage counts once, however many tensors view it. What there was before, as parameters, does not count; copies
    of them that autocast makes do, and so does what activation checkpointing starts from.

    Args:
        forward: computes what a backward could start from. Called before, so that nothing else is left of it.
        device: whose memory.

    Returns:
        None where that is not known.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        graph = forward().grad_fn
        gc.collect()
        kept = torch.cuda.memory_allocated(device) - before
    elif device.type == "cpu":
        with _silent_profiler() as profiler:
            graph = forward().grad_fn
            gc.collect()
        kept = sum(event.nbytes() for event in _changes(profiler))
    else:
        return None
    del graph  # until here it was alive
    return kept


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
    level = highest = 0
    for event in sorted(_changes(profiler), key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest


def _changes(profiler: Any) -> list[Any]:
    """Each time that memory was taken or given back."""
    return [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
