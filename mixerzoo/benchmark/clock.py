"""Time, also on a device that works apart from the program."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the device is done with it.

    Args:
        call: what is timed; what it returns is dropped.
        device: that works for it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - start
    finally:
        if collects:
            gc.enable()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median over rounds of the ratio within a round, and its quartiles.

    Args:
        ours: a time for each round.
        theirs: likewise.
    """
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) == 1:
        return ratios[0], (ratios[0], ratios[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, (low, high)
