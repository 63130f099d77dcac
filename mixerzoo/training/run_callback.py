"""What happens between the steps of a run: metrics.jsonl, validation, the reporter, and the wish to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mixerzoo.data import PreparedData
from mixerzoo.errors import RunError
from mixerzoo.inference import Progress, Score, score
from mixerzoo.model import Decoder
from mixerzoo.recipe import Recipe, autocast_dtype
from mixerzoo.runs import RunDirectory
from mixerzoo.training.interrupts import Interrupts
from mixerzoo.training.records import Records
from mixerzoo.training.reporter import Reporter
from mixerzoo.training.trackers import Trackers


class _Stop(Exception):
    """A validation is not worth its end: the run is to stop."""


class RunCallback(TrainerCallback):
    """Writes metrics.jsonl, validates at intervals, tells the reporter, and stops for a signal.

    Args:
        run: its files.
        recipe: of the run.
        data: its validation text.
        reporter: hears of it.
        interrupts: what asks for the end.
        records: of what the run has cost.
        trackers: hear of every line of metrics.jsonl.
        main: whether this is the process that writes.
        validate_first: whether the step that training goes on from has yet to be validated.
        as_saved: a block in which the decoder is what the run would save.
    """

    def __init__(
        self,
        run: RunDirectory,
        recipe: Recipe,
        data: PreparedData,
        reporter: Reporter,
        interrupts: Interrupts,
        records: Records,
        trackers: Trackers,
        *,
        main: bool,
        validate_first: bool,
        as_saved: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._run, self._recipe, self._data, self._reporter = run, recipe, data, reporter
        self._interrupts, self._records, self._trackers, self._main = interrupts, records, trackers, main
        self._validate_first, self._as_saved = validate_first, as_saved
        self._loss: float | None = None
        self._group: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer goes by what the checkpoint says, and a longer run has other intervals.
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]
        if args.world_size > 1:
            # Signals reach processes at different steps; over the CPU, so that no step waits for a GPU.
            self._group = dist.new_group(backend="gloo")
        if self._validate_first:
            line = self._validate(kwargs["model"].decoder, state)
            if self._main and line is not None:
                self._run.metrics.insert_validation(line)
                self._trackers.tell(line)
        self._records.stopwatch.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        if "loss" not in logs:
            return
        self._loss = logs["loss"]
        self._reporter.logged(state.global_step, logs["loss"], self._records.tokens_per_second)
        if self._main:
            figures = {key: logs[key] for key in ("loss", "grad_norm", "learning_rate")}
            records = self._records.after(state.global_step)
            self._write({"step": state.global_step, **figures, **records})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._records.stopwatch.step()
        self._reporter.step(state.global_step, self._loss, self._records.tokens_per_second)
        interval = self._recipe.eval.interval
        if interval is not None and state.global_step % interval == 0 and state.global_step < state.max_steps:
            line = self._validate(kwargs["model"].decoder, state)
            if self._main and line is not None:
                self._write(line)
        if self.to_stop():
            control.should_save = control.should_training_stop = True
        return control

    def _write(self, line: dict[str, Any]) -> None:
        self._run.metrics.append(line)
        self._trackers.tell(line)

    def to_stop(self) -> bool:
        """Whether any process was asked to stop; all of them must call this, and each waits for the others."""
        received = self._interrupts.received
        if self._group is None:
            return received is not None
        anyone = torch.tensor(received or 0)
        dist.all_reduce(anyone, dist.ReduceOp.MAX, group=self._group)
        agreed = int(anyone) or None
        # Not set to None: this process may have received one meanwhile, of which the next step tells the others.
        if agreed is not None:
            self._interrupts.agree(agreed)
        return agreed is not None

    def _validate(self, decoder: Decoder, state: TrainerState) -> dict[str, Any] | None:
        """The line of a validation; None: it was stopped, and is done when the run goes on.

        Raises:
            RunError: its loss is not finite.
        """
        decoder.eval()
        try:
            with self._records.validating(), self._as_saved():
                result = score_validation(
                    decoder, self._recipe, self._data, self._recipe.eval.max_sequences, self._stop_early
                )
        except _Stop:
            return None
        finally:
            decoder.train()
        check_finite(result, f"validation after step {state.global_step}")
        self._reporter.validation(state.global_step, result)
        records = self._records.after(state.global_step)
        return {"step": state.global_step, "validation": result.to_dict(), **records}

    def _stop_early(self, done: int, total: int) -> None:
        # Several processes wait for each other at the end of a validation, so there it goes on.
        if self._group is None and self._interrupts.received is not None:
            raise _Stop


def score_validation(
    decoder: Decoder, recipe: Recipe, data: PreparedData, max_sequences: int | None, progress: Progress | None
) -> Score:
    """Score the validation text as a recipe says.

    Args:
        decoder: the model.
        recipe: of the run.
        data: its text.
        max_sequences: as in `mixerzoo.inference.scoring.score`.
        progress: called after each batch.
    """
    decoder.model.reset_positions = recipe.data.reset_positions
    return score(
        decoder,
        data.validation.tokens,
        sequence_length=recipe.data.sequence_length,
        start_token=data.tokenizer.end_of_text_id,
        num_bytes=data.validation.num_bytes,
        batch_size=recipe.eval.batch_size,
        max_sequences=max_sequences,
        autocast=autocast_dtype(recipe.train.precision),
        document_mask=recipe.data.document_mask,
        progress=progress,
    )


def check_finite(result: Score, what: str) -> None:
    """Refuse a validation that is not a number.

    Raises:
        RunError: its loss is not finite.
    """
    if not math.isfinite(result.loss):
        raise RunError(
            f"the loss of the {what} is {result.loss}: the decoder no longer computes numbers on this text; lower "
            "train.learning_rate, or clip with train.max_grad_norm"
        )
