"""What `mixerzoo generate` says beside the text that it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.cli.verbosity import hint
from mixerzoo.errors import CheckpointError, RunError

if TYPE_CHECKING:
    from mixerzoo.cli.chat import Options
    from mixerzoo.data import TextFormat


class Notices:
    """What is worth a line on standard error.

    Args:
        form: of the texts.
        options: how they are written.
        trained_length: tokens that the decoder was trained on at once, where that is known.
    """

    def __init__(self, form: TextFormat, options: Options, trained_length: int | None) -> None:
        self._form, self._options, self._trained_length = form, options, trained_length

    def names(self, texts: Sequence[Any]) -> None:
        """Of special tokens whose names are in texts, or in messages, and are not taken as those tokens."""
        names = [] if self._options.special_tokens else self._form.spelled_in(texts)
        if names:
            _tell(
                f"the names of special tokens in the prompt ({', '.join(names)}) are taken as plain text; "
                "--special-tokens takes them as those tokens"
            )

    def length(self, num_tokens: int) -> None:
        """Of more tokens than the decoder has seen at once, told once."""
        trained, new = self._trained_length, self._options.max_new_tokens
        if trained is None or num_tokens + new <= trained:
            return
        self._trained_length = None
        if num_tokens > trained:
            what = f"the prompt has {num_tokens} tokens"
        else:
            given = "one token" if num_tokens == 1 else f"{num_tokens} tokens"
            what = f"the prompt's {given} and up to {new} new ones are {num_tokens + new}"
        _tell(f"{what}, and the decoder was trained on {trained} at once; beyond, expect worse text")


def _tell(notice: str) -> None:
    hint(f"Note: {notice}", err=True)


def trained_length(directory: Path) -> int | None:
    """Tokens that a decoder was trained on at once, where its run's recipe or its config.json says so.

    Args:
        directory: the checkpoint.

    Raises:
        CheckpointError: config.json cannot be read, or its ``max_position_embeddings`` is no length.
    """
    from mixerzoo.checkpoints import CONFIG_FILE, read_json
    from mixerzoo.runs import RunDirectory, home_of

    run = RunDirectory(home_of(directory))
    if run.begun:
        try:
            return run.recipe().data.sequence_length
        except RunError as error:
            # The weights are what counts here; a recipe of an older version may be one no more.
            _tell(f"for which length the decoder was trained is not known: {str(error).splitlines()[-1]}")
            return None
    length = read_json(directory / CONFIG_FILE).get("max_position_embeddings")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: max_position_embeddings is {str(length)[:60]}; it must be a length"
        )
    return length
