"""What of a process any code in it can change for all others: noted, compared, and put back."""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import torch


class Setting(NamedTuple):
    """One thing that belongs to the whole process.

    Attributes:
        words: what it is called.
        read: gives its value, which can be compared with ``==``.
        write: puts a value back; None where that cannot be done.
        tells: from the value before and the one after, what is worth telling; None: nothing is.
    """

    words: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None
    tells: Callable[[Any, Any], str] | None = None


#: In place of a value that cannot be read.
_UNREADABLE = object()


class Snapshot:
    """All `SETTINGS` as they are now."""

    def __init__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._filters = list(warnings.filters)
        self._warnings.__enter__()
        self._threads = set(threading.enumerate())
        self._before = [(setting, _read(setting)) for setting in SETTINGS]

    def restore(self) -> list[str]:
        """Put back what has changed since.

        Returns:
            What that was, each in words.
        """
        found = []
        try:
            for setting, before in self._before:
                now = _read(setting)
                if before is not _UNREADABLE and now != before:
                    found.append(_undone(setting, before, now))
            if list(warnings.filters) != self._filters:
                found.append("the filters of warnings, undone")
        finally:
            self._warnings.__exit__(None, None, None)
        started = [thread.name for thread in set(threading.enumerate()) - self._threads if not thread.daemon]
        if started:
            found.append(f"it started threads that keep the process from ending: {', '.join(sorted(started))}")
        return found


def _read(setting: Setting) -> Any:
    try:
        return setting.read()
    except Exception:  # noqa: BLE001  the others are compared all the same
        return _UNREADABLE


def _undone(setting: Setting, before: Any, now: Any) -> str:
    values = f" ({setting.tells(before, now)})" if setting.tells and now is not _UNREADABLE else ""
    if setting.write is None:
        return f"{setting.words}{values}, which cannot be undone"
    try:
        setting.write(before)
    except Exception as error:  # noqa: BLE001  the others are put back all the same
        return f"{setting.words}{values}, which cannot be undone: {error}"
    return f"{setting.words}{values}, undone"


def _both(before: Any, now: Any) -> str:
    return f"from {before} to {now}"


def _names(before: dict[str, str], now: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)))


def _entries(before: dict[str, Any], now: dict[str, Any]) -> str:
    pairs = {name: (before.get(name), now.get(name)) for name in before | now}
    return ", ".join(f"{name} from {a} to {b}" for name, (a, b) in pairs.items() if a != b)


def _added(before: list[str], now: list[str]) -> str:
    return ", ".join(map(repr, [entry for entry in now if entry not in before])) or "reordered, or shortened"


class _Absent:
    """Of a module that was not there, any value is as good."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _enter(directory: str | None) -> None:
    if directory is not None:
        os.chdir(directory)


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if hasattr(time, "tzset"):
        time.tzset()


def _torch_random() -> tuple[bytes, ...]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return tuple(state.numpy().tobytes() for state in states)


def _set_torch_random(states: tuple[bytes, ...]) -> None:
    cpu, *cuda = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


class _NumpyRandom:
    """The state of numpy's global generator, of whichever kind that is."""

    def __init__(self) -> None:
        self.state = sys.modules["numpy"].random.get_state(legacy=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NumpyRandom) and _plain(self.state) == _plain(other.state)

    __hash__ = None  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    """Nested mappings with arrays in them as values that ``==`` compares."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tobytes() if hasattr(value, "tobytes") else value


def _numpy_random() -> _NumpyRandom | _Absent:
    return _NumpyRandom() if "numpy" in sys.modules else _Absent()


def _set_numpy_random(before: _NumpyRandom) -> None:
    sys.modules["numpy"].random.set_state(before.state)


def _default_device() -> torch.device:
    return torch.get_default_device()


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(flags: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


def _cudnn() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.benchmark, cudnn.deterministic


def _set_cudnn(flags: tuple[bool, ...]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags


_PRODUCTS = "float32_matmul_precision"
#: Of torch, where the precision of float32 is set: the old settings, which set new ones too, come before those, and
#: what others inherit from before these.
_PRECISIONS = (
    *(_PRODUCTS, "backends.cudnn.allow_tf32", "backends.fp32_precision", "backends.cudnn.fp32_precision"),
    *("backends.cuda.matmul.fp32_precision", "backends.cudnn.conv.fp32_precision", "backends.cudnn.rnn.fp32_precision"),
    *(f"backends.mkldnn.{of}.fp32_precision" for of in ("matmul", "conv", "rnn")),
)


def float32_precision() -> dict[str, Any]:
    """The precision of torch's float32 by its settings, but for those that it lacks or cannot read.

    It refuses to read an old setting where a new one says something else.
    """
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old settings
        for name in _PRECISIONS:
            with suppress(AttributeError, RuntimeError):
                found[name] = torch.get_float32_matmul_precision() if name == _PRODUCTS else attrgetter(name)(torch)
    return found


def set_float32_precision(precision: dict[str, Any]) -> None:
    """Put back what `float32_precision` found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in precision.items():
            if float32_precision().get(name) == value:
                continue  # writing what is inherited would make it the setting's own
            if name == _PRODUCTS:
                torch.set_float32_matmul_precision(value)
            else:
                owner, _, attribute = name.rpartition(".")
                setattr(attrgetter(owner)(torch), attribute, value)


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in sorted(signal.valid_signals())}


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _alarm() -> bool:
    return hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _set_alarm(running: bool) -> None:
    if not running:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _logging() -> tuple[Any, ...]:
    return logging.root.level, tuple(logging.root.handlers), logging.root.manager.disable


def _set_logging(state: tuple[Any, ...]) -> None:
    logging.root.setLevel(state[0])
    logging.root.handlers[:] = state[1]
    logging.disable(state[2])


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_start_method(method: str | None) -> None:
    multiprocessing.set_start_method(method, force=True)  # None: chosen at the first use


def _attributes(module: Any, names: Iterable[str]) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """Reader and writer of attributes that are compared by identity."""

    def read() -> tuple[Any, ...]:
        return tuple(getattr(module, name) for name in names)

    def write(values: tuple[Any, ...]) -> None:
        for name, value in zip(names, values, strict=True):
            setattr(module, name, value)

    return read, write


def _path() -> list[str]:
    return list(sys.path)


def _set_path(path: list[str]) -> None:
    sys.path[:] = path


SETTINGS: tuple[Setting, ...] = (
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype, tells=_both),
    Setting("torch's default device", _default_device, _set_default_device, tells=_both),
    Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled, tells=_both),
    Setting("the number of torch's threads", torch.get_num_threads, torch.set_num_threads, tells=_both),
    Setting("the number of torch's inter-op threads", torch.get_num_interop_threads, None, tells=_both),
    Setting("torch's deterministic algorithms", _deterministic, _set_deterministic),
    Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting("the precision of torch's float32 products", float32_precision, set_float32_precision, tells=_entries),
    Setting("the flags of cuDNN", _cudnn, _set_cudnn),
    Setting("the random state of torch", _torch_random, _set_torch_random),
    Setting("the random state of Python", random.getstate, random.setstate),
    Setting("the random state of numpy", _numpy_random, _set_numpy_random),
    Setting("the working directory", _directory, _enter, tells=_both),
    Setting("the environment", lambda: dict(os.environ), _set_environment, tells=_names),
    Setting("sys.path", _path, _set_path, tells=_added),
    Setting("the standard streams", *_attributes(sys, ("stdin", "stdout", "stderr"))),
    Setting("hooks of sys", *_attributes(sys, ("excepthook", "displayhook", "breakpointhook", "unraisablehook"))),
    Setting("the hook of threads", *_attributes(threading, ("excepthook",))),
    Setting("the trace function", sys.gettrace, sys.settrace),
    Setting("the profile function", sys.getprofile, sys.setprofile),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, tells=_both),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value),
            tells=_both),
    Setting("signal handlers", _handlers, _set_handlers),
    Setting("an alarm", _alarm, _set_alarm),
    Setting("the root logger", _logging, _set_logging),
    Setting("the mask of file permissions", _umask, os.umask),
    Setting("the garbage collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    Setting("the time-out of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout, tells=_both),
    Setting("how processes are started", lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method,
            tells=_both),
)  # fmt: skip
