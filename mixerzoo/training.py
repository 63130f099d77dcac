"""Trains the decoder of a recipe and leaves a run directory behind."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from mixerzoo import __version__
from mixerzoo.attention import check_backend
from mixerzoo.checkpoint_files import weights_fingerprint
from mixerzoo.checkpoints import load_checkpoint, load_config, save_checkpoint
from mixerzoo.data import PreparedData, TextTokenizer, TokenWindows, prepare, yardsticks
from mixerzoo.decoder import Decoder
from mixerzoo.environment import launch, notices, recipe_decides
from mixerzoo.errors import CheckpointError, RecipeError, RunError
from mixerzoo.evaluate import Score, accounting, score
from mixerzoo.feasibility import check_data, check_size
from mixerzoo.files import sha256
from mixerzoo.hf.trainer import MixerZooTrainer
from mixerzoo.model_card import CARD_FILE, model_card
from mixerzoo.recipe import Recipe, build
from mixerzoo.runs import GENERATION_FILE, RunDirectory, complete_checkpoints, to_json, write_atomically


class Reporter:
    """Hears how a run goes; every method does nothing unless overridden."""

    def notice(self, text: str) -> None:
        """Something about the run that is worth a line."""

    def data(self, stage: str, done: int, total: int) -> None:
        """Bytes of text done and in all (0 where not known) of a stage of data preparation."""

    def ready(self, recipe: Recipe, decoder: Decoder, data: PreparedData, first_step: int) -> None:
        """Training starts after ``first_step`` steps that were done before."""

    def step(self, step: int, loss: float | None, tokens_per_second: float) -> None:
        """A step is done; the loss is that of the newest log line."""

    def logged(self, step: int, loss: float, tokens_per_second: float) -> None:
        """A line of ``metrics.jsonl``: the mean loss since the one before."""

    def validation(self, step: int, result: Score) -> None:
        """A validation during training is done."""

    def final_validation(self, done: int, total: int) -> None:
        """Sequences of the final validation done and in all."""

    def scoring(self, what: str, done: int, total: int) -> None:
        """Sequences of another text done and in all."""


@recipe_decides()
def train(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train, validate and save.

    Under torchrun every process calls this with the same arguments; the first one writes.

    Args:
        recipe: the experiment.
        directory: the run directory.
        resume: continue the run that the directory holds from its newest complete checkpoint, or from the
            beginning if it has none. A finished run is left as it is, and its figures are returned.
        overwrite: replace the run that the directory holds; files that no run wrote stay.
        command: what started the run, for its records.
        reporter: hears of progress.

    Returns:
        The final figures, as in ``result.json``.

    Raises:
        RunError: the directory is in the way, in use or holds another run, there is nothing to resume, or the
            loss is not finite.
        DataError: the text is missing or too little.
        RecipeError, MixerError, BackendError: the recipe cannot be built.
        OSError: a file cannot be written.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    main = launch().rank == 0
    reporter = reporter if reporter is not None and main else Reporter()
    _say(reporter, notices(compiled=recipe.train.compile))
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    # A recipe that cannot run must fail before minutes go into its data, and before it replaces a run.
    check_backend(recipe.model.attention_backend, "cuda" if torch.cuda.is_available() else "cpu", training=True)
    _say(reporter, check_size(recipe))
    run = RunDirectory(directory.resolve())
    if not main:
        return _train(recipe, run, resume, command, reporter, main)
    check = run.check_resumable if resume else partial(run.check_free, overwrite=overwrite)
    check()
    with run.claimed():
        check()  # another process may have begun and ended a run since
        return _train(recipe, run, resume, command, reporter, main)


def _say(reporter: Reporter, texts: Iterable[str]) -> None:
    for text in texts:
        reporter.notice(text)


def _train(
    recipe: Recipe, run: RunDirectory, resume: bool, command: str, reporter: Reporter, main: bool
) -> dict[str, Any]:
    if resume and not run.begun:
        reporter.notice(f"{run.path} holds no step of a run yet: starting at the beginning")
        resume = False
    if resume:
        run.recipe()
    data = prepare(recipe.data, progress=reporter.data)
    recipe = recipe.with_vocab_size(recipe.data.vocab_size or data.tokenizer.vocab_size)
    if resume:
        run.check_same(recipe, data.fingerprint)
        if run.finished:
            reporter.notice(f"{run.path} is already finished; its figures:")
            return run.result()
    _say(reporter, check_data(recipe, data))
    checkpoints = complete_checkpoints(run.checkpoints) if resume else []
    first_step, newest = checkpoints[-1] if checkpoints else (0, None)
    initial = None
    if newest is None and recipe.model.init_from is not None:
        _check_tokenizer(recipe.model.init_from, data)
        initial = weights_fingerprint(recipe.model.init_from)
        reporter.notice(_beginning(recipe, recipe.model.init_from))
    # A checkpoint of the run itself replaces all weights.
    decoder = build(recipe if newest is None else recipe.from_scratch())
    if resume and newest is None:
        run.check_initial(initial)
    if main and not resume:
        run.start(recipe, data, command, initial)
    if main:
        run.rewind_log(first_step)
    reporter.ready(recipe, decoder, data, first_step)
    trainer = MixerZooTrainer(
        decoder,
        recipe,
        TokenWindows(data.train.tokens, recipe.data.sequence_length),
        run.checkpoints,
        [_Progress(run, recipe, data, reporter, main)],
    )
    if newest is not None and first_step >= recipe.train.steps:
        # Trainer would take one step more than asked.
        decoder.load_state_dict(load_checkpoint(newest).state_dict())
    else:
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    final = _score(decoder, recipe, data, None, reporter)
    result = {**final.to_dict(), **yardsticks(data), **accounting(decoder), "steps": recipe.train.steps}
    if main:
        save_checkpoint(decoder, run.path)
        end = data.tokenizer.end_of_text_id
        write_atomically(run.path / GENERATION_FILE, to_json({"eos_token_id": end, "pad_token_id": end}))
        write_atomically(run.path / CARD_FILE, run_card(recipe, result))
        run.finish(result)
    if dist.is_initialized():
        dist.barrier()
    return result


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


class _Progress(TrainerCallback):
    """Writes metrics.jsonl, validates at intervals and tells the reporter."""

    def __init__(self, run: RunDirectory, recipe: Recipe, data: PreparedData, reporter: Reporter, main: bool) -> None:
        self._run, self._recipe, self._data, self._reporter, self._main = run, recipe, data, reporter, main
        self._loss: float | None = None
        self._began, self._began_at = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began, self._began_at = time.monotonic(), state.global_step

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
        speed = round(self._tokens_per_second(args, state), 1)
        self._reporter.logged(state.global_step, logs["loss"], speed)
        if self._main:
            figures = {key: logs[key] for key in ("loss", "grad_norm", "learning_rate")}
            self._run.log({"step": state.global_step, **figures, "tokens_per_second": speed})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._reporter.step(state.global_step, self._loss, self._tokens_per_second(args, state))
        interval = self._recipe.eval.interval
        if interval is not None and state.global_step % interval == 0 and state.global_step < state.max_steps:
            decoder = kwargs["model"].decoder
            decoder.eval()
            result = _score(decoder, self._recipe, self._data, self._recipe.eval.max_sequences, None)
            decoder.train()
            self._reporter.validation(state.global_step, result)
            if self._main:
                self._run.log({"step": state.global_step, "validation": result.to_dict()})

    def _tokens_per_second(self, args: TrainingArguments, state: TrainerState) -> float:
        train = self._recipe.train
        per_step = train.batch_size * train.accumulation * args.world_size * self._recipe.data.sequence_length
        elapsed = max(1e-9, time.monotonic() - self._began)
        return float((state.global_step - self._began_at) * per_step / elapsed)


def _score(
    decoder: Decoder, recipe: Recipe, data: PreparedData, max_sequences: int | None, reporter: Reporter | None
) -> Score:
    return score(
        decoder,
        data.validation.tokens,
        sequence_length=recipe.data.sequence_length,
        start_token=data.tokenizer.end_of_text_id,
        num_bytes=data.validation.num_bytes,
        batch_size=recipe.eval.batch_size,
        max_sequences=max_sequences,
        bf16=recipe.train.precision == "bf16",
        progress=None if reporter is None else reporter.final_validation,
    )


def evaluate_run(
    directory: Path, *, device: torch.device | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Score a finished run on the validation text of its own recipe.

    Args:
        directory: the run directory.
        device: where to compute; default: a GPU where there is one.
        reporter: hears of progress.

    Returns:
        ``bits_per_byte``, ``perplexity``, yardsticks and byte counts, and ``validation_text``, the SHA-256 of the text.

    Raises:
        RunError: the directory holds no run or one that is not finished, or the run's data changed.
        CheckpointError: its checkpoint cannot be read, or has another vocabulary.
        DataError: the recipe's text cannot be read.
    """
    reporter = reporter or Reporter()
    run = RunDirectory(directory)
    recipe = run.finished_recipe()
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = load_checkpoint(directory, attention_backend=recipe.model.attention_backend, device=where)
    data = prepare(recipe.data, progress=reporter.data)
    run.check_data(data.fingerprint)
    if data.tokenizer.vocab_size > decoder.shape.vocab_size:
        raise CheckpointError(f"{directory}: the tokenizer has more tokens than the checkpoint's embedding has rows")
    final = _score(decoder, recipe, data, None, reporter)
    text = {"validation_text": sha256(data.directory / "validation.txt")}
    return {**final.to_dict(), **yardsticks(data), **accounting(decoder), **text}


def run_card(recipe: Recipe, result: dict[str, Any]) -> str:
    """The README.md of a run directory."""
    start = "" if recipe.model.init_from is None else f", from the weights of `{recipe.model.init_from}`"
    origin = f"""Trained by mixerzoo {__version__} for {recipe.train.steps} steps on the source
`{recipe.data.source.name}`{start}. The recipe is in `recipe.yaml`, the versions and the
data's fingerprint in `run.json`.

| validation | |
|---|---|
| bits per byte | {result["bits_per_byte"]:.4f} |
| perplexity per token | {result["perplexity"]:.3f} |
| byte-bigram model, bits per byte | {result["bigram_bits_per_byte"]:.4f} |
| xz, bits per byte | {result["xz_bits_per_byte"]:.4f} |
| KV cache, bytes per token | {result["kv_bytes_per_token"]:,} |
| in flight, bytes per token | {result["in_flight_bytes_per_token"]:,} |"""
    return model_card(recipe.mixer.name, result["parameters"], origin=origin)
