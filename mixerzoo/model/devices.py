"""Devices and dtypes by name, refused in words where they cannot be had."""

from __future__ import annotations

import torch

from mixerzoo.errors import BackendError, did_you_mean

#: What a decoder can compute in.
DTYPES = ("float64", "float32", "bfloat16", "float16")


def find_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype that weights can have.

    Args:
        dtype: ``torch.float64``, ``"float64"`` or ``"torch.float64"``.

    Raises:
        BackendError: it is none of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise BackendError(
            f"weights cannot be of dtype {name!r}{did_you_mean(name, DTYPES)}; known: {', '.join(DTYPES)}"
        )
    found: torch.dtype = getattr(torch, name)
    return found


def default_device() -> str:
    """Where a decoder goes of which nothing is said: ``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_device(device: torch.device | str) -> torch.device:
    """A device on which tensors can be made.

    Args:
        device: as torch names them, e.g. ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"meta"``.

    Raises:
        BackendError: no such device is here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"device {str(device)!r} cannot be used here: {reason}") from error
    return found
