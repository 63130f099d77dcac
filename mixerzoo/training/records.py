"""What a run has cost so far: tokens, seconds, operations, speed, memory; and on what it ran."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixerzoo.errors import RunError
from mixerzoo.model import Decoder, flops_per_token
from mixerzoo.recipe import FORWARDS_PER_STEP, Recipe, tokens_of_run
from mixerzoo.training.hardware import device_name, peak_flops, peak_memory_bytes, reset_peak_memory
from mixerzoo.training.stopwatch import Stopwatch

#: Keys of `Records.after` that two runs of the same bits differ in.
MEASURED = ("train_seconds", "validation_seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


class Records:
    """The costs of one run, which a checkpoint carries over to the process that goes on with it.

    What a process did after the checkpoint that another one goes on from is done again, and counts once.

    Args:
        recipe: of the run.
        decoder: the model, on any device.
        device: where it trains.
        processes: how many train.
        documents: as for `flops_per_token`.
    """

    def __init__(
        self,
        recipe: Recipe,
        decoder: Decoder,
        device: torch.device,
        processes: int,
        documents: Sequence[int] | None = None,
    ) -> None:
        self.stopwatch = Stopwatch(compiled=recipe.train.compile != "off")
        self._seed, self._device, self._processes = recipe.seed, device, processes
        self._tokens_per_step = tokens_of_run(recipe, processes) // recipe.train.steps
        self._flops_per_token = FORWARDS_PER_STEP * flops_per_token(decoder, recipe.data.sequence_length, documents)
        self._peak_flops = peak_flops(device, recipe.train.precision)
        self._validation_seconds = 0.0
        self._peak_memory = 0
        reset_peak_memory(device)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """A block that is a validation and no part of a step."""
        with self.stopwatch.paused():
            began = time.monotonic()
            try:
                yield
            finally:
                self._validation_seconds += time.monotonic() - began

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that all processes together see in a second of training; None: no step is measured yet."""
        speed = self.stopwatch.steps_per_second
        return None if speed is None else round(speed * self._tokens_per_step, 1)

    def after(self, step: int) -> dict[str, Any]:
        """The records after a step, as ``metrics.jsonl`` and ``result.json`` have them.

        Args:
            step: how many are done.
        """
        tokens, speed = step * self._tokens_per_step, self.tokens_per_second
        used = None
        if speed is not None and self._peak_flops is not None:
            used = round(speed * self._flops_per_token / (self._processes * self._peak_flops), 4)
        return {
            "seed": self._seed,
            "tokens": tokens,
            "train_seconds": round(self.stopwatch.total_seconds, 3),
            "validation_seconds": round(self._validation_seconds, 3),
            "train_flops": tokens * self._flops_per_token,
            "tokens_per_second": speed,
            "mfu": used,
            "peak_memory_bytes": self._peak(),
            "device": device_name(self._device),
            "devices": self._processes,
            "threads": torch.get_num_threads(),
        }

    def _peak(self) -> int:
        self._peak_memory = max(self._peak_memory, peak_memory_bytes(self._device))
        return self._peak_memory

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in plain values."""
        return {
            "steps": self.stopwatch.steps,
            "seconds": self.stopwatch.seconds,
            "first_seconds": self.stopwatch.first_seconds,
            "validation_seconds": self._validation_seconds,
            "peak_memory": self._peak(),
        }

    def load_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from what a checkpoint kept.

        Args:
            state: from `state`.
            path: for messages.

        Raises:
            RunError: it is none.
        """
        kinds = {key: type(value) for key, value in self.state().items()}
        if state.keys() != kinds.keys() or not all(type(state[key]) is kind for key, kind in kinds.items()):
            raise RunError(f"{path}: holds no records of a run's costs; remove the checkpoint")
        self.stopwatch.steps, self.stopwatch.seconds = state["steps"], state["seconds"]
        self.stopwatch.first_seconds = state["first_seconds"]
        self._validation_seconds = state["validation_seconds"]
        self._peak_memory = max(self._peak_memory, state["peak_memory"])
