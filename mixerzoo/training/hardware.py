"""The device that trains: its name, how fast it could be, and how much of its memory was used."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import torch

from mixerzoo.process import peak_of

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def device_name(device: torch.device) -> str:
    """A GPU's own name, or ``"cpu"``.

    Args:
        device: where a run trains.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations that a device could do in a second; None where that is not known, as of every CPU.

    Args:
        device: where a run trains.
        precision: ``train.precision`` of its recipe.
    """
    if device.type != "cuda":
        return None
    if precision == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        # The program that trains has chosen another unit of the GPU.
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from here on, where the system can do that.

    Args:
        device: where a run trains.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text("5")
        except PermissionError:
            return  # a container may forbid it; then the peak is that of the process


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held at once: of a GPU what tensors took, else what the process took of the machine.

    Args:
        device: where a run trains.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists() and (found := _HIGH_WATER.search(_STATUS.read_text())):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
