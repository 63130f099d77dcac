"""The process of one run of a comparison: ``python -P -m mixerzoo.experiments.child RECIPE DIRECTORY COMMAND NAME``.

What happens goes to standard output, a line of JSON each; whatever else is printed, to standard error. Standard input
is the other end of a pipe that the comparison holds: when that ends, by ``kill -9`` too, so does this process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mixerzoo.errors import MixerzooError
from mixerzoo.training import Reporter, Terminated, train

if TYPE_CHECKING:
    from mixerzoo.data import PreparedData
    from mixerzoo.model import Decoder
    from mixerzoo.recipe import Recipe

#: Seconds to wait for the process of a killed comparison to let go of the run.
_PATIENCE = 20.0
#: Seconds between two lines about steps.
_INTERVAL = 0.25


class _Lines(Reporter):
    """Writes what happens as lines of JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0

    def say(self, **event: Any) -> None:
        """Write an event."""
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()

    def notice(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def ready(self, recipe: Recipe, decoder: Decoder, data: PreparedData, first_step: int) -> None:
        self.say(step=first_step, first=True)

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        now = time.monotonic()
        if now - self._last > _INTERVAL:
            self._last = now
            self.say(step=step, loss=loss, tokens_per_second=tokens_per_second)

    def logged(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        print(f"step {step}: loss {loss:.4f}", file=sys.stderr, flush=True)


def _end_with_the_comparison() -> None:
    os.read(0, 1)
    os._exit(137)


def _wait_until_free(directory: Path) -> None:
    """Let the process of an earlier comparison, which ends as soon as it notices, be gone."""
    from filelock import FileLock, Timeout

    if (directory / "run.lock").exists():
        try:
            with FileLock(directory / "run.lock", timeout=_PATIENCE):
                pass
        except Timeout:
            return  # training says so in its own words


def main() -> int:
    """Train; the exit code is 0, 2 for what the user can put right, and as `mixerzoo train` after signals."""
    recipe, directory, command, name = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5]
    threading.Thread(target=_end_with_the_comparison, daemon=True).start()
    lines = _Lines(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        _wait_until_free(directory)
        train(recipe, directory, resume=directory.exists(), command=command, name=name, reporter=lines)
    except (MixerzooError, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror is not None:
            text = f"{os.fsdecode(error.filename or '')}: {error.strerror}"
        lines.say(error=text, number=error.errno if isinstance(error, OSError) else None)
        return 2
    except (KeyboardInterrupt, Terminated) as error:
        return 130 if isinstance(error, KeyboardInterrupt) else 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
