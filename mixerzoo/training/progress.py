"""Progress of long work: bars on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import math
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mixerzoo.training.reporter import Reporter

if TYPE_CHECKING:
    from mixerzoo.data import PreparedData
    from mixerzoo.inference import Score
    from mixerzoo.model import Decoder
    from mixerzoo.recipe import Recipe

_STAGES = {
    "wait": "Wait for another",
    "download": "Download text",
    "read": "Read text",
    "train_tokenizer": "Train tokenizer",
    "tokenize": "Tokenise",
}


class ProgressReporter(Reporter):
    """Shows a bar for each stage and, while training, loss, tokens per second and the time left.

    On a terminal, and in a notebook that has ipywidgets. Elsewhere a stage is a line when it begins, and a training
    step is one whenever it is logged. The bars move while it is used as a context manager::

        with mixerzoo.ProgressReporter() as reporter:
            mixerzoo.train("recipe.yaml", "runs/first", reporter=reporter)

    Args:
        console: where to; default: standard output.

    Attributes:
        last_step: the newest step that is done; None before training.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.last_step: int | None = None
        self._console = console or Console(markup=False, highlight=False, emoji=False)
        self._moving = self._console.is_terminal
        if self._console.is_jupyter:
            self._moving = importlib.util.find_spec("ipywidgets") is not None
        self._bars = Progress(
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._moving,
        )
        self._tasks: dict[str, TaskID] = {}
        self._steps = 0
        self._bytes_per_token = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def notice(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def data(self, stage: str, done: int, total: int) -> None:
        self._show(_STAGES.get(stage, stage), done, total, "")

    def ready(self, recipe: Recipe, decoder: Decoder, data: PreparedData, first_step: int) -> None:
        parameters = sum(decoder.num_parameters())
        self.notice(
            f"{recipe.mixer.name}: {parameters:,} parameters; "
            f"{len(data.train.tokens):,} training and {len(data.validation.tokens):,} validation tokens "
            f"({_size(data.train.num_bytes)} and {_size(data.validation.num_bytes)} of text)"
        )
        self.last_step = first_step
        self._steps = recipe.train.steps
        self._bytes_per_token = data.validation.num_bytes / len(data.validation.tokens)
        if first_step:
            self.notice(f"resuming after step {first_step}")
        self._show("Train", first_step, recipe.train.steps, "")

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        self.last_step = step
        note = [] if loss is None else [f"loss {loss:.3f}"]
        note += [] if tokens_per_second is None else [f"{tokens_per_second:,.0f} tokens/s"]
        self._show("Train", step, self._steps, "  ".join(note))

    def logged(self, step: int, loss: float, tokens_per_second: float | None) -> None:
        if not self._moving:
            speed = "" if tokens_per_second is None else f", {tokens_per_second:,.0f} tokens/s"
            self.notice(f"step {step}/{self._steps}: loss {loss:.3f}{speed}")

    def validation(self, step: int, result: Score) -> None:
        bits = result.loss / math.log(2) / self._bytes_per_token
        # A part of the text has its own bytes per token; the whole text's are near.
        about = "about " if result.bits_per_byte is None else ""
        self.notice(
            f"step {step}: validation loss {result.loss:.4f}, perplexity {result.perplexity:.2f}, "
            f"{about}{bits:.3f} bits per byte"
        )

    def final_validation(self, done: int, total: int) -> None:
        self._show("Validate", done, total, "")

    def scoring(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total, "")

    def _show(self, title: str, done: int, total: int | None, note: str) -> None:
        if title not in self._tasks:
            if not self._moving:
                self.notice(f"{title} …")
            self._tasks[title] = self._bars.add_task(title, total=total or None, note=note)
        self._bars.update(self._tasks[title], completed=done, total=total or None, note=note)


def _size(num_bytes: int) -> str:
    """In the unit in which something is to be seen of it."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:,.1f} kB"
