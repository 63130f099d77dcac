"""Encodes text in several processes, each on one core."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from mixerzoo.data.encoding import Ids
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.errors import DataError

# A piece, whose encoding takes about 50 MB.
_BATCH_CHARACTERS = 1 << 18
_WORKER = (sys.executable, "-P", "-m", "mixerzoo.data.encoding_worker")
# Batches for each process: one that it is at, and one that lies ready.
_BATCHES = 2


class EncodingPool:
    """Processes that encode; a context, at whose end they end.

    Each begins when there is work for it. They are started as commands, and not by ``multiprocessing``, which would
    run the caller's own script again.

    Args:
        tokenizer: what to encode with.
        dtype: numpy name of the ids' type.
        workers: how many processes at most.
    """

    def __init__(self, tokenizer: TextTokenizer, dtype: str, workers: int) -> None:
        self.tokenizer = tokenizer
        self.characters = _BATCH_CHARACTERS
        self.ahead = _BATCHES * workers
        self._start = (tokenizer.to_json(), tokenizer.end_of_text, dtype)
        self._threads = ThreadPoolExecutor(workers)
        self._of_thread = threading.local()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:  # one may have begun meanwhile
            worker.close()

    def submit(self, texts: Sequence[str]) -> Callable[[], Ids]:
        """Begins with a batch; calling what it gives waits for the ids.

        Raises:
            DataError: as `TextTokenizer.encode_batch`, or the process was killed.
        """
        return self._threads.submit(self._encode, list(texts)).result

    def _encode(self, texts: list[str]) -> Ids:
        worker: _Worker | None = getattr(self._of_thread, "worker", None)
        if worker is None:
            worker = self._of_thread.worker = _Worker(self._start)
            self._workers.append(worker)
        return worker.encode(texts)


class _Worker:
    """One process, which one thread speaks to."""

    def __init__(self, start: tuple[str, str, str]) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            _WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._batches = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._answers = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()
        self._start: Any = start

    def encode(self, texts: list[str]) -> Ids:
        try:
            if self._start is not None:
                self._batches.send(self._start)
                self._start = None
            self._batches.send(texts)
            ids, error = self._answers.recv()
        except (EOFError, OSError) as broken:
            code = self._process.wait()
            # A system short of memory kills; what ends by itself has said why.
            why = "where memory is short, lower data.workers" if code < 0 else "what it said stands above"
            raise DataError(
                f"a process of data.workers ended while it was tokenising (exit code {code}): {why}"
            ) from broken
        if error is not None:
            raise DataError(error)
        found: Ids = ids
        return found

    def kill(self) -> None:
        """Ends the process, whatever it is at; who waits for its answer gets an error."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process, and lets go of what nobody waits for any more."""
        self.kill()
        self._batches.close()
        self._answers.close()
