"""Evaluates checkpoints side by side: on their own validation text, on text files, on lm-eval's tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mixerzoo.checkpoints import CONFIG_FILE, load_checkpoint, load_config, read_json
from mixerzoo.data import TextFormat, TextTokenizer
from mixerzoo.errors import CheckpointError, DataError
from mixerzoo.evaluation.validate import evaluate_run
from mixerzoo.inference import Progress, Score, accounting, score
from mixerzoo.model import Decoder, default_device
from mixerzoo.process import full_precision
from mixerzoo.recipe import autocast_dtype
from mixerzoo.runs import RECIPE_FILE, RunDirectory, home_of
from mixerzoo.training import Reporter

if TYPE_CHECKING:
    from mixerzoo.evaluation.tasks.harness import TaskSet
    from mixerzoo.evaluation.tasks.language_model import DecoderLM
    from mixerzoo.recipe import Recipe

#: Tokens of a window where no recipe says how many.
WINDOW = 1024
# A batch of this many logits is 256 MB in float32.
_LOGITS = 1 << 26


@dataclass(frozen=True)
class Settings:
    """How text files and tasks are evaluated; None is each checkpoint's own.

    Attributes:
        tokenizer: directory of the tokenizer; default: the checkpoint's.
        window: tokens that the decoder is called with at most; default: the ``sequence_length`` of the run's
            recipe, without one `WINDOW`, or ``max_position_embeddings`` where that is less.
        batch_size: windows per forward; default: the recipe's, without one as many as memory allows.
        dtype: of the weights; default: as stored, and autocast where the run was trained with it.
        device: where to compute; default: a GPU where there is one.
    """

    tokenizer: Path | None = None
    window: int | None = None
    batch_size: int | None = None
    dtype: str | None = None
    device: torch.device | None = None


def read_text(path: Path) -> str:
    """A text file as it is, without any change to its line breaks.

    Raises:
        DataError: it cannot be read, is empty or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 at byte {error.start}: convert the file to UTF-8") from error
    if not text:
        raise DataError(f"{path}: the file is empty, so there is nothing to score")
    return text


class Checkpoint:
    """A checkpoint with what it takes to evaluate it; no weight is read before `load`.

    Args:
        directory: of any kind that `load_checkpoint` reads.
        settings: in place of its own.

    Raises:
        CheckpointError: it is no checkpoint that can be read, or the tokenizer does not belong to it.
        DataError: there is no tokenizer, or a file names ends of a text that are none.
        RunError: the recipe beside it cannot be read.
    """

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self._settings = settings
        vocab_size = load_config(directory)[0].vocab_size
        assert vocab_size is not None
        longest = read_json(directory / CONFIG_FILE).get("max_position_embeddings")
        home = home_of(directory)
        self._recipe = RunDirectory(home).recipe() if (home / RECIPE_FILE).exists() else None
        self.tokenizer = _load_tokenizer(settings.tokenizer, home)
        if self.tokenizer.vocab_size > vocab_size:
            raise CheckpointError(
                f"{directory}: the tokenizer has {self.tokenizer.vocab_size} tokens, but the decoder only "
                f"{vocab_size}; they do not belong together"
            )
        self._format = TextFormat.load(home, self.tokenizer)
        #: Ids before every text. The texts of a run begin after an end of text, whatever its tokenizer does elsewhere.
        self.prefix = list(self._format.prefix) if self._recipe is None else []
        own_window = min(WINDOW, longest or WINDOW) if self._recipe is None else self._recipe.data.sequence_length
        self.window = settings.window or own_window
        own_batch = _batch_size(self.window, vocab_size) if self._recipe is None else self._recipe.eval.batch_size
        self.batch_size = settings.batch_size or own_batch
        #: The dtype of autocast, as it was trained; None: there is none.
        self.autocast: torch.dtype | None = None
        if settings.dtype is None and self._recipe is not None:
            self.autocast = autocast_dtype(self._recipe.train.precision)

    def load(self) -> Decoder:
        """Read the weights.

        Raises:
            CheckpointError: they are damaged or not those of the configuration.
            BackendError: there is no such dtype, or the attention backend cannot run there.
        """
        return load_checkpoint(
            self.directory,
            self._settings.dtype,
            attention_backend="sdpa" if self._recipe is None else self._recipe.model.attention_backend,
            device=self._settings.device or default_device(),
        )

    def keeps(self, text: str) -> bool:
        """Whether the tokens of a text stand for all of it, as those of byte-level tokenizers do."""
        return self.tokenizer.decode(self.tokenizer.encode_text(text), skip_special_tokens=False) == text

    def language_model(self, decoder: Decoder, progress: Callable[[str, int, int], None]) -> DecoderLM:
        """The decoder as lm-eval's language model.

        Args:
            decoder: from `load`.
            progress: called with what is done, how many times, and of how many.
        """
        from mixerzoo.evaluation.tasks.language_model import DecoderLM

        return DecoderLM(
            decoder,
            self._format,
            window=self.window,
            prefix=self.prefix,
            batch_size=self.batch_size,
            autocast=self.autocast,
            progress=progress,
        )

    def score(self, decoder: Decoder, text: str, progress: Progress | None = None) -> Score:
        """Score every token of a text, in windows as in `mixerzoo.inference.scoring.score`.

        Args:
            decoder: from `load`.
            text: not empty; its end is not scored.
            progress: called after each batch.

        Raises:
            DataError: the text has no tokens, or the decoder's logits are not numbers.
        """
        tokens = self.tokenizer.encode_text(text)
        if not tokens:
            raise DataError("the tokenizer finds no token in this text, so there is nothing to score")
        scored = score(
            decoder,
            np.array(tokens),
            sequence_length=self.window,
            start_token=self.prefix[-1] if self.prefix else self.tokenizer.end_of_text_id,
            num_bytes=len(text.encode()),
            batch_size=self.batch_size,
            autocast=self.autocast,
            progress=progress,
        )
        if math.isnan(scored.nll):
            raise DataError(
                f"{self.directory}: its logits are not numbers, so nothing can be scored; a wider dtype may help"
            )
        return scored


@full_precision()
def compare(
    directories: Sequence[Path],
    *,
    validation: bool = False,
    texts: Mapping[str, str] = MappingProxyType({}),
    tasks: TaskSet | None = None,
    settings: Settings = Settings(),
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Evaluate checkpoints on the same texts and tasks.

    All of them are looked at before the weights of the first are read.

    Args:
        directories: checkpoints.
        validation: score each, which must be a finished run, on the validation text of its own recipe.
        texts: name → text.
        tasks: to be run on each.
        settings: of texts and tasks; validation has those of the recipe.
        reporter: hears of progress.

    Returns:
        For each checkpoint its ``directory``, the figures of `evaluate_run`, or without validation those of
        `accounting`, and where there are texts or tasks ``window``, ``batch_size``, ``texts`` (name → figures) and
        ``tasks`` (task → metric → value). Where several are validated, ``same_validation_text`` says whether their
        validation can be compared.

    Raises:
        CheckpointError: a directory holds no checkpoint that can be read, or another's tokenizer.
        RunError: it holds no finished run, and is to be validated; or a variable of the environment would change the
            figures.
        DataError: a tokenizer is missing, or a task wants what the decoder cannot do.
    """
    reporter = reporter or Reporter()
    recipes = [RunDirectory(directory).finished_recipe() for directory in directories] if validation else []
    asked = [Checkpoint(directory, settings) if texts or tasks else None for directory in directories]
    _say_what_differs(recipes, asked, reporter)
    results = []
    for directory, checkpoint in zip(directories, asked, strict=True):
        if len(directories) > 1:
            reporter.notice(f"{directory}:")
        result: dict[str, Any] = {"directory": str(directory)}
        if validation:
            result |= evaluate_run(directory, device=settings.device, reporter=reporter)
        if checkpoint is not None:
            result |= _answers(checkpoint, texts, tasks, reporter)
        results.append(result)
    if validation and len(results) > 1:
        same = len({result["validation_text"] for result in results}) == 1
        if not same:
            reporter.notice("the validation texts of these runs differ, so figures of validation do not rank them")
        for result in results:
            result["same_validation_text"] = same
    return results


def _say_what_differs(recipes: Sequence[Recipe], asked: Sequence[Checkpoint | None], reporter: Reporter) -> None:
    """Notices of how much context tokens have, where that is not the same for all."""
    if len({recipe.data.document_mask for recipe in recipes}) > 1:
        reporter.notice(
            "data.document_mask differs among these runs, and where it is on a token sees less in validation; figures "
            "of validation do not rank them"
        )
    windows = sorted({checkpoint.window for checkpoint in asked if checkpoint is not None})
    if len(windows) > 1:
        reporter.notice(
            f"windows differ ({', '.join(map(str, windows))} tokens), and a longer one sees more; to compare, set one "
            "for all with --window"
        )


def _answers(
    checkpoint: Checkpoint, texts: Mapping[str, str], tasks: TaskSet | None, reporter: Reporter
) -> dict[str, Any]:
    decoder = checkpoint.load()
    result: dict[str, Any] = {
        **accounting(decoder),
        "window": checkpoint.window,
        "batch_size": checkpoint.batch_size,
    }
    if texts:
        result["texts"] = {}
    for name, text in texts.items():
        if not checkpoint.keeps(text):
            reporter.notice(f"{name}: the tokenizer changes this text, so bits per byte are those of what it keeps")
        try:
            scored = checkpoint.score(decoder, text, partial(reporter.scoring, name))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        result["texts"][name] = scored.to_dict()
    if tasks is not None:
        result["tasks"] = tasks.run(checkpoint.language_model(decoder, reporter.scoring))
    return result


def _batch_size(window: int, vocab_size: int) -> int:
    return max(1, min(16, _LOGITS // (window * vocab_size)))


def _load_tokenizer(directory: Path | None, home: Path) -> TextTokenizer:
    if directory is None and not (home / "tokenizer.json").exists():
        raise DataError(f"{home}: it has no tokenizer.json; give the directory of its tokenizer with --tokenizer")
    return TextTokenizer.pretrained(str(directory or home))
