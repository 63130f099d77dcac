"""Keeps what a plugin does while it is loaded, or asked about itself, from spoiling the process that asks.

A plugin is a stranger's code that runs in every command, also in one that does not use it. So while it runs, what it
prints goes to standard error, what it changes of the process is noted and put back, and it cannot end the process.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

from mixerzoo.errors import MixerzooError, PluginError, error_line, visible
from mixerzoo.process import Snapshot

logger = logging.getLogger(__name__)

#: Seconds after which a plugin that is still busy is named, and then again.
PATIENCE = 10.0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a plugin was running, which its text names."""


class _Guards(threading.local):
    """How many guards the current thread is in."""

    guards = 0


_outer = _Guards()


@contextmanager
def guarded(plugin: str, doing: str, changes: list[str] | None = None) -> Iterator[None]:
    """Run a plugin's code.

    What it changed of the process is undone, and logged as a warning. Within another guard of the same thread that is
    left to the outer one, unless ``changes`` asks whose it was.

    Args:
        plugin: its name, for messages.
        doing: what it is doing, in words, e.g. ``"being imported"``.
        changes: gets what was changed, in words.

    Raises:
        PluginError: the plugin raised SystemExit or KeyboardInterrupt or called ``os._exit``.
        Interrupted: it was the user who pressed Ctrl-C.
    """
    plugin = visible(plugin)
    if _outer.guards and changes is None:
        with _kept_alive(plugin, doing):
            yield
        return
    snapshot = Snapshot()
    _outer.guards += 1
    try:
        with output_to_stderr(), _named_while_busy(plugin, doing), _kept_alive(plugin, doing):
            yield
    finally:
        _outer.guards -= 1
        found = [visible(change) for change in snapshot.restore()]
        if found:
            logger.warning("plugin %s changed, while %s: %s", plugin, doing, "; ".join(found))
        if changes is not None:
            changes.extend(found)


@contextmanager
def blamed(plugin: str, doing: str, problem: str, kind: type[MixerzooError] = PluginError) -> Iterator[None]:
    """Run a plugin's code as `guarded` does, and say of whatever it raises what cannot be done now.

    Args:
        plugin: its name, for messages.
        doing: what it is doing, in words.
        problem: what cannot be done; the error begins with it.
        kind: of the error.

    Raises:
        MixerzooError: of that kind; the plugin raised something.
    """
    try:
        with guarded(plugin, doing):
            yield
    except Exception as error:  # the code is a stranger's
        raise kind(f"{problem}: {error_line(error)}") from error


@contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send what is written to standard output to standard error, by Python, by C and by child processes.

    A stream that is kept from here goes on writing to standard error afterwards.
    """
    if isinstance(sys.stdout, _ToStderr):
        yield
        return
    stdout = sys.stdout
    with ExitStack() as stack:
        if stdout is not None:
            stdout.flush()
        stack.enter_context(_descriptor_to_stderr())
        sys.stdout = _ToStderr()
        try:
            yield
        finally:
            sys.stdout = stdout


@contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """Let file descriptor 1 be what 2 is; where one of them is closed there is nothing to keep clean."""
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    _flush_c()
    try:
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        # What C has not written yet belongs to the plugin.
        _flush_c()
        os.dup2(kept, 1)
        os.close(kept)


def _flush_c() -> None:
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)


class _ToStderr(io.TextIOBase):
    """Standard output in the hands of a plugin: text goes to standard error, with control characters written out."""

    def write(self, text: str) -> int:
        if sys.stderr is not None:
            sys.stderr.write(visible(text))
        return len(text)

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def close(self) -> None:
        """Stay open: it is not the plugin's."""

    def reconfigure(self, **options: Any) -> None:
        """Stay as it is."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    @property
    def buffer(self) -> IO[bytes]:
        return sys.stderr.buffer


@contextmanager
def _named_while_busy(plugin: str, doing: str) -> Iterator[None]:
    """Name a plugin on standard error each time that it has been busy for another `PATIENCE` seconds."""
    done, stream = threading.Event(), sys.stderr

    def watch() -> None:
        seconds = PATIENCE
        while not done.wait(PATIENCE):
            if stream is not None:
                stream.write(f"plugin {plugin}: still {doing} after {seconds:g} s\n")
                stream.flush()
            seconds += PATIENCE

    watcher = threading.Thread(target=watch, name=f"watch {plugin}", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def _kept_alive(plugin: str, doing: str) -> Iterator[None]:
    """Turn what would end the process into an error, but for Ctrl-C."""
    pressed = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_no_exit())
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(_noticing_interrupts(pressed))
        try:
            yield
        except SystemExit as error:
            raise PluginError(f"it would end the process, while {doing}: SystemExit({error.code!r})") from error
        except KeyboardInterrupt as error:
            if pressed.is_set():
                logger.warning("interrupted while plugin %s was %s", plugin, doing)
                raise Interrupted(plugin) from error
            raise PluginError(f"it would end the process, while {doing}: it raises KeyboardInterrupt itself") from error


@contextmanager
def _noticing_interrupts(pressed: threading.Event) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return

    def handler(number: int, frame: Any) -> None:
        pressed.set()
        before(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        # Whose handler it is by now is for the snapshot to say.
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _no_exit() -> Iterator[None]:
    """Let ``os._exit`` and ``os.abort`` of this process raise SystemExit; its children end as they like."""
    process, active = os.getpid(), True

    def instead(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def leave(*arguments: Any) -> Any:
            if active and os.getpid() == process:
                raise SystemExit(f"os.{name}({', '.join(map(repr, arguments))})")
            return real(*arguments)

        return leave

    real = {name: getattr(os, name) for name in ("_exit", "abort")}
    for name, function in real.items():
        setattr(os, name, instead(function, name))
    try:
        yield
    finally:
        active = False
        for name, function in real.items():
            setattr(os, name, function)
