"""Trains the decoder of a recipe and leaves a run directory behind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mixerzoo.checkpoints import CARD_FILE, load_config, save_checkpoint, weights_fingerprint
from mixerzoo.data import PreparedData, TextTokenizer, TokenWindows, prepare, yardsticks
from mixerzoo.errors import DataError, RecipeError, RunError
from mixerzoo.files import check_files, to_json, write_text
from mixerzoo.inference import accounting
from mixerzoo.model import Decoder, is_sharded
from mixerzoo.process import errors_alone, is_out_of_memory, launch, notices, recipe_decides
from mixerzoo.recipe import Recipe, build, check_data, idle_groups, to_recipe, weights_dtype
from mixerzoo.runs import (
    BATCH,
    GENERATION_FILE,
    LENGTH,
    METRICS_FILE,
    RunDirectory,
    newest_whole,
    read_metrics_file,
    run_card,
    tidy,
)
from mixerzoo.training.arguments import learning_rates
from mixerzoo.training.checks import check_apart, check_possible
from mixerzoo.training.interrupts import Interrupts
from mixerzoo.training.nodes import waiting_for_nodes
from mixerzoo.training.parallel import process_group, whole_weights
from mixerzoo.training.processes import check_step, loader_in_words, losses_in_words, step_in_words, take_device
from mixerzoo.training.reporter import Reporter
from mixerzoo.training.run_callback import RunCallback, check_finite, score_validation
from mixerzoo.training.trackers import Trackers
from mixerzoo.training.trainer import MixerZooTrainer

__all__ = ["Reporter", "train"]


@recipe_decides()
def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    directory: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    save_on_interrupt: bool = True,
    command: str = "",
    name: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train, validate and save.

    Under torchrun every process calls this with the same arguments; the first one writes.

    Args:
        recipe: the experiment: a `Recipe`, the mapping that it is validated from, or the path of a recipe file.
        directory: the run directory.
        resume: continue the run that the directory holds from its newest whole checkpoint, or from the beginning if
            it has none. A finished run is left as it is, and its figures are returned; with more ``train.steps`` it
            goes on where its schedule allows.
        overwrite: replace the run that the directory holds; files that no run wrote stay.
        save_on_interrupt: whether Ctrl-C and SIGTERM during a step save a checkpoint after it; a second one ends at
            once in any case.
        command: what started the run, for its records.
        name: what trackers call the run; default: the directory's name.
        reporter: hears of progress.

    Returns:
        The final figures, as in ``result.json``.

    Raises:
        RunError: the directory is in the way, in use, holds another run or what the new one is made of, there is
            nothing to resume or it is damaged, memory or a GPU is missing, or the loss or the weights are not finite.
        DataError: the text is missing or too little.
        RecipeError, MixerError, BackendError: the recipe cannot be built.
        OSError: a file cannot be written.
        KeyboardInterrupt: Ctrl-C, after the checkpoint is saved.
        mixerzoo.training.interrupts.Terminated: SIGTERM, likewise.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    take_device()
    given, recipe = recipe, to_recipe(recipe)
    if overwrite:
        check_apart(recipe, Path(directory), given if isinstance(given, str | os.PathLike) else None)
    main = launch().rank == 0
    reporter = reporter if reporter is not None and main else Reporter()
    _say(reporter, notices(compiled=recipe.train.compile != "off"))
    _say(reporter, check_possible(recipe))
    run = RunDirectory(Path(directory).resolve())
    with _interrupts(save_on_interrupt, main) as interrupts, _surroundings(recipe):
        work = _Work(run, recipe, command, name or run.path.name, reporter, interrupts, main)
        if not main:
            return work.train(resume)
        check = run.check_resumable if resume else partial(run.check_free, overwrite=overwrite)
        check()
        with run.claimed():
            check()  # another process may have begun and ended a run since
            return work.train(resume)


def _interrupts(hold: bool, main: bool) -> Interrupts:
    say = "Saving a checkpoint after this step; once more ends at once." if main else ""
    return Interrupts(hold=hold, say=say, once=5.0 if launch().world_size > 1 else 0.0)


@contextmanager
def _surroundings(recipe: Recipe) -> Iterator[None]:
    """What a run needs of its process, and what goes wrong around it in words."""
    with errors_alone("transformers"), memory_in_words(), losses_in_words(), loader_in_words(), process_group(recipe):
        yield


def _say(reporter: Reporter, texts: Iterable[str]) -> None:
    for text in texts:
        reporter.notice(text)


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Turn a lack of memory, the GPU's or the machine's, into what to do about it.

    Raises:
        RunError: memory is short.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = str(error)
        reason = text.splitlines()[0] if text else "the system gives no more"
        raise RunError(
            f"out of memory: {reason}\nlower train.batch_size (train.accumulation makes up for it), "
            "data.sequence_length or eval.batch_size, or set train.activation_checkpointing"
        ) from error


@dataclass(frozen=True)
class _Start:
    """Where training starts: after a step, from a checkpoint; or at the beginning."""

    step: int = 0
    checkpoint: Path | None = None


@dataclass
class _Work:
    """One call of `train`."""

    run: RunDirectory
    recipe: Recipe
    command: str
    name: str
    reporter: Reporter
    interrupts: Interrupts
    main: bool

    def train(self, resume: bool) -> dict[str, Any]:
        """Prepare, train, finish."""
        run, reporter = self.run, self.reporter
        if resume and not run.begun:
            reporter.notice(f"{run.path} holds no step of a run yet: starting at the beginning")
            resume = False
        if resume:
            run.recipe()
        with waiting_for_nodes(reporter):
            data = prepare(self.recipe.data, progress=reporter.data)
        self.recipe = self.recipe.with_vocab_size(self.recipe.data.vocab_size or data.tokenizer.vocab_size)
        start = _Start()
        if resume:
            longer = self._check_same(data)
            if run.finished and not longer:
                check_files(run.path)
                if self.main:
                    tidy(run.checkpoints, self.recipe.train.keep_checkpoints)
                reporter.notice(f"{run.path} is already finished; its figures:")
                return run.result()
            start = self._newest(data, longer)
        _say(reporter, (*data.notices, *check_data(self.recipe, data)))
        if (processes := launch().world_size) > 1:
            reporter.notice(step_in_words(self.recipe, processes))
        decoder = self._begin(data, start, resume)
        _say(reporter, idle_groups(self.recipe, decoder))
        end = data.tokenizer.end_of_text_id if self.recipe.data.document_mask else None
        windows = TokenWindows(data.train.tokens, self.recipe.data.sequence_length, end)
        reporter.ready(self.recipe, decoder, data, start.step)
        trainer = MixerZooTrainer(decoder, self.recipe, windows, run.checkpoints, [], run)
        with Trackers(self.recipe, run, trainer.args, self.name) as trackers:
            callback = RunCallback(
                run,
                self.recipe,
                data,
                reporter,
                self.interrupts,
                trainer.records,
                trackers,
                main=self.main,
                validate_first=self._validation_missing(start),
                as_saved=trainer.as_saved,
            )
            trainer.add_callback(callback)
            if self.main:
                trackers.begin(start.step, sum(decoder.num_parameters()))
            self._steps(trainer, callback, start)
            return self._finish(trainer, data, trackers)

    def _steps(self, trainer: MixerZooTrainer, callback: RunCallback, start: _Start) -> None:
        if start.checkpoint is not None and start.step >= self.recipe.train.steps:
            # Trainer would take one step more than asked.
            trainer.load_weights(start.checkpoint)
        else:
            with self.interrupts.held():
                trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
                trainer.finish_saving()
                # One that ends with the signal has torchrun end the first, which may be at its checkpoint still.
                callback.to_stop()

    def _check_same(self, data: PreparedData) -> bool:
        """Refuse to resume another run; says whether this one is to take more steps than it was started with."""
        if not self.run.lengthens(self.recipe):
            self.run.check_same(self.recipe, data.fingerprint, () if self.run.finished else BATCH)
            return False
        self.run.check_data(data.fingerprint)
        return True

    def _newest(self, data: PreparedData, longer: bool) -> _Start:
        """The checkpoint to go on from."""
        run = self.run
        found = newest_whole(run.checkpoints, run.run_id, self.reporter.notice, main=self.main)
        if found is None and run.finished:
            raise RunError(
                f"{run.path} is finished and has no checkpoint left to go on from (train.keep_checkpoints: "
                f"{self.recipe.train.keep_checkpoints})"
            )
        start = _Start() if found is None else _Start(*found)
        if start.checkpoint is None:
            run.check_same(self.recipe, data.fingerprint, LENGTH if longer else ())
        elif (changed := check_step(start.checkpoint, run.recipe(), self.recipe, launch().world_size)) is not None:
            self.reporter.notice(changed)
        if longer:
            _check_schedule(run.recipe(), self.recipe, start.step)
        return start

    def _begin(self, data: PreparedData, start: _Start, resume: bool) -> Decoder:
        """The decoder, and the run directory made ready for its first step."""
        run, initial = self.run, None
        if start.checkpoint is None and self.recipe.model.init_from is not None:
            _check_tokenizer(self.recipe.model.init_from, data)
            initial = weights_fingerprint(self.recipe.model.init_from)
            self.reporter.notice(_beginning(self.recipe, self.recipe.model.init_from))
        # A checkpoint of the run itself replaces all weights.
        dtype = weights_dtype(self.recipe.train.precision)
        decoder = build(self.recipe if start.checkpoint is None else self.recipe.from_scratch(), dtype=dtype)
        if resume and start.checkpoint is None:
            run.check_initial(initial)
        if self.main and not resume:
            run.start(self.recipe, data, self.command, initial)
        elif self.main:
            for mended in run.go_on(self.recipe, data, start.checkpoint):
                self.reporter.notice(mended)
        return decoder

    def _validation_missing(self, start: _Start) -> bool:
        """Whether a validation is due at the step that training goes on from.

        That of a shorter run was the final one, and one that was cut short is not in the metrics.
        """
        interval = self.recipe.eval.interval
        if start.checkpoint is None or interval is None or start.step % interval:
            return False
        lines = read_metrics_file(start.checkpoint / METRICS_FILE)
        return start.step < self.recipe.train.steps and not any(
            line["step"] == start.step and "validation" in line for line in lines
        )

    def _finish(self, trainer: MixerZooTrainer, data: PreparedData, trackers: Trackers) -> dict[str, Any]:
        """Score, save, and say that the run is finished."""
        run, recipe, decoder = self.run, self.recipe, trainer.finish()
        decoder.eval()
        with trainer.records.validating():
            final = score_validation(decoder, recipe, data, None, self.reporter.final_validation)
        check_finite(final, "final validation")
        trackers.final(recipe.train.steps, final.to_dict())
        result = {
            **final.to_dict(),
            **accounting(decoder),
            "steps": recipe.train.steps,
            **trainer.records.after(recipe.train.steps),
        }
        weights = whole_weights(decoder, keep=self.main) if is_sharded(decoder) else None
        if self.main:
            run.check_there()
            save_checkpoint(decoder, run.path, weights)
            if recipe.model.init_from is None:
                end = data.tokenizer.end_of_text_id
                write_text(run.path / GENERATION_FILE, to_json({"eos_token_id": end, "pad_token_id": end}))
        result |= yardsticks_or_none(data, self.reporter)
        if self.main:
            write_text(run.path / CARD_FILE, run_card(recipe, result))
            run.finish(result)
            tidy(run.checkpoints, recipe.train.keep_checkpoints)
        if dist.is_initialized():
            dist.barrier()
        return result


def _check_schedule(saved: Recipe, recipe: Recipe, step: int) -> None:
    """Refuse to go on for longer where the steps that are done would have been others.

    Raises:
        RunError: a longer run would have had other learning rates by this step.
    """
    steps = recipe.train.steps
    before, now = learning_rates(saved, step), learning_rates(recipe, step)
    differing = next((i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b), None)
    if differing is None:
        return
    message = (
        f"the run cannot go on to train.steps={steps}: it took step {differing + 1} at a learning rate of "
        f"{before[differing]:.4g}, and a run of {steps} steps would have taken it at {now[differing]:.4g}; "
    )
    warmup = round(saved.train.steps * saved.train.warmup_fraction)
    fraction = round(warmup / steps, 12)
    if recipe.train.schedule == "constant":
        message += (
            f"it warmed up over {warmup} steps: set train.warmup_fraction={fraction!r}, which is as many of {steps}"
        )
    else:
        message += (
            f"the schedule '{recipe.train.schedule}' ends with the run, and only a constant one can go on; start a new "
            "run of as many steps, or one from these weights with model.init_from"
        )
    raise RunError(message)


def yardsticks_or_none(data: PreparedData, reporter: Reporter) -> dict[str, Any]:
    """The figures beside the score; without them the run is finished all the same."""
    try:
        return dict(yardsticks(data))
    except (DataError, OSError) as error:
        reporter.notice(f"the yardsticks are missing from the figures: {error}")
        return {"bigram_bits_per_byte": None, "xz_bits_per_byte": None}


def _beginning(recipe: Recipe, initial: str) -> str:
    """What is said of the weights that training starts from."""
    _, source, options = load_config(initial)
    own = recipe.mixer
    if own.name == source.name and own.options == options:
        return f"Starting from the weights of {initial}."
    changed = f"{own.name} in place of {source.name}" if own.name != source.name else f"other options of {own.name}"
    return f"Starting from the weights of {initial}, with {changed}: the mixer has its initial values."


def _check_tokenizer(initial: str, data: PreparedData) -> None:
    """Refuse tokens that mean something else to the weights that training starts from.

    Raises:
        RecipeError: the tokenizer is not the checkpoint's.
        DataError: the checkpoint has none.
    """
    if TextTokenizer.load(initial).to_json() != data.tokenizer.to_json():
        raise RecipeError(
            f"data.tokenizer is not the tokenizer of {initial}, whose weights know their own tokens only; "
            "leave data.tokenizer out"
        )
