"""Scores a finished run on the validation text of its own recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mixerzoo.checkpoints import load_checkpoint
from mixerzoo.data import prepare
from mixerzoo.errors import CheckpointError
from mixerzoo.files import check_files, sha256
from mixerzoo.inference import accounting
from mixerzoo.model import default_device
from mixerzoo.process import full_precision
from mixerzoo.runs import RunDirectory
from mixerzoo.training import Reporter, memory_in_words, score_validation, yardsticks_or_none


@full_precision()
def evaluate_run(
    directory: str | Path, *, device: torch.device | str | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Score a finished run on the validation text of its own recipe.

    Args:
        directory: the run directory.
        device: where to compute; default: a GPU where there is one.
        reporter: hears of progress.

    Returns:
        ``bits_per_byte``, ``perplexity``, yardsticks and byte counts, and ``validation_text``, the SHA-256 of the text.

    Raises:
        RunError: the directory holds no run or one that is not finished, the run's data changed, or a variable of the
            environment would change the figures.
        CheckpointError: its checkpoint cannot be read, has another vocabulary, or a file is not the run's.
        DataError: the recipe's text cannot be read.
    """
    directory = Path(directory)
    reporter = reporter or Reporter()
    run = RunDirectory(directory)
    recipe = run.finished_recipe()
    check_files(directory)
    where = device or default_device()
    decoder = load_checkpoint(directory, attention_backend=recipe.model.attention_backend, device=where)
    data = prepare(recipe.data, progress=reporter.data)
    run.check_data(data.fingerprint)
    if data.tokenizer.vocab_size > decoder.shape.vocab_size:
        raise CheckpointError(f"{directory}: the tokenizer has more tokens than the checkpoint's embedding has rows")
    with memory_in_words():
        final = score_validation(decoder, recipe, data, None, reporter.final_validation)
    text = {"validation_text": sha256(data.directory / "validation.txt")}
    return {**final.to_dict(), **yardsticks_or_none(data, reporter), **accounting(decoder), **text}
