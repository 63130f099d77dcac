"""What hears of a run while it is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixerzoo.data import PreparedData
    from mixerzoo.inference import Score
    from mixerzoo.model import Decoder
    from mixerzoo.recipe import Recipe


class Reporter:
    """Hears how a run goes; every method does nothing unless overridden.

    ``tokens_per_second`` is that of training steps alone; None: none has been measured yet.
    """

    def notice(self, text: str) -> None:
        """Something about the run that is worth a line."""

    def data(self, stage: str, done: int, total: int) -> None:
        """Bytes of text done and in all (0 where not known) of a stage of data preparation."""

    def ready(self, recipe: Recipe, decoder: Decoder, data: PreparedData, first_step: int) -> None:
        """Training starts after ``first_step`` steps that were done before."""

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        """A step is done; the loss is that of the newest log line."""

    def logged(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        """A line of ``metrics.jsonl``: the mean loss since the one before."""

    def validation(self, step: int, result: Score) -> None:
        """A validation during training is done."""

    def final_validation(self, done: int, total: int) -> None:
        """Sequences of the final validation done and in all."""

    def scoring(self, what: str, done: int, total: int) -> None:
        """Sequences of another text done and in all."""
