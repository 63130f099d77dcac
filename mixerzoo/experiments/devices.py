"""The devices of a comparison: which it can take, and which of them is next."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from mixerzoo.errors import BackendError
from mixerzoo.model import find_device

#: Where runs can train.
_KINDS = ("cpu", "cuda")


def find_devices(names: Sequence[str]) -> tuple[str, ...]:
    """Devices that runs take in turn.

    Args:
        names: ``cpu``, or ``cuda:0``, ``cuda:1``…

    Returns:
        The same, each with its number where there is one.

    Raises:
        BackendError: one is not here, nothing trains on it, it is there twice, or they are of two kinds.
    """
    found: list[str] = []
    for name in names:
        device = find_device(name)
        if device.type not in _KINDS:
            raise BackendError(f"device {name!r}: runs train on {' or '.join(_KINDS)}")
        whole = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        if whole in found:
            raise BackendError(f"device {name!r} is there twice; --jobs says how many runs go on at a time")
        found.append(whole)
    if len({kind_of(device) for device in found}) > 1:
        raise BackendError(
            f"devices {', '.join(found)}: on a GPU the same run gives other bits than on a CPU, so that they do not "
            "compare; name devices of one kind"
        )
    return tuple(found)


def kind_of(device: str) -> str:
    """``cpu`` or ``cuda``."""
    return device.partition(":")[0]


def visible_devices(device: str) -> str:
    """``CUDA_VISIBLE_DEVICES`` of a process that shall have one device of those that this process has.

    Args:
        device: from `find_devices`.
    """
    if kind_of(device) == "cpu":
        return ""
    number, inherited = device.partition(":")[2], os.environ.get("CUDA_VISIBLE_DEVICES")
    return number if inherited is None else inherited.split(",")[int(number)].strip()


class Turns:
    """Who takes which device: in turn, and no second run on one while another is free.

    Args:
        devices: from `find_devices`.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._queue = list(devices)
        self._busy = Counter[str]()

    def take(self) -> str | None:
        """The device of the next run; None: none was named."""
        if not self._queue:
            return None
        device = min(self._queue, key=lambda each: self._busy[each])
        self._queue.remove(device)
        self._queue.append(device)
        self._busy[device] += 1
        return device

    def give_back(self, device: str | None) -> None:
        """A run on it has ended."""
        if device is not None:
            self._busy[device] -= 1
