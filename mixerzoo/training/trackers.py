"""Trackers that a recipe names: the Trainer's own integrations, told every number of ``metrics.jsonl``.

They are not given to Trainer, which would end them before the final validation, tell them only what it logs itself,
and start another run of theirs where ours goes on.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from mixerzoo.errors import RecipeError, RunError
from mixerzoo.recipe import Recipe
from mixerzoo.runs import TENSORBOARD, RunDirectory

#: Of trackers that keep runs of several directories together.
_PROJECT = "mixerzoo"
_MLFLOW_TAG = "mixerzoo_run"
_ID_SHOWN = 8


def check_trackers(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed.

    Args:
        recipe: names them in ``train.trackers``.

    Raises:
        RecipeError: says what to install.
    """
    missing = [name for name in recipe.train.trackers if not _installed(name)]
    if missing:
        raise RecipeError(
            f'train.trackers: not installed: {", ".join(missing)}; pip install "mixerzoo[{",".join(missing)}]"'
        )


def _installed(name: str) -> bool:
    found = find_spec(name)
    # A mere folder of that name, which wandb makes where it works, can be imported too.
    return found is not None and found.origin is not None


class Trackers:
    """The trackers of one run, a context manager that ends what they keep open; without any it does nothing.

    Args:
        recipe: names them.
        run: begun; what it is called is the same whenever it goes on.
        arguments: of the Trainer.
        name: of the run, for people.
    """

    def __init__(self, recipe: Recipe, run: RunDirectory, arguments: TrainingArguments, name: str) -> None:
        self._recipe, self._run = recipe, run
        self._arguments = copy.copy(arguments)
        self._arguments.project = _PROJECT
        self._name = name
        self._told: list[TrainerCallback] = []
        self._ends: list[Callable[[bool], object]] = []
        self._control = TrainerControl()

    def begin(self, step: int, num_parameters: int) -> None:
        """Start them, or let them go on.

        Args:
            step: that the run goes on after.
            num_parameters: of decoder and mixer.

        Raises:
            RunError: one does not start.
        """
        if not self._recipe.train.trackers:
            return
        self._arguments.run_name = f"{self._name} {self._run.run_id[:_ID_SHOWN]}"
        model = _Described(self._recipe, num_parameters)
        makers: dict[str, Callable[[], TrainerCallback]] = {
            "tensorboard": partial(self._tensorboard, self._run.path / TENSORBOARD, step),
            "trackio": TrackioCallback,
            "wandb": self._wandb,
            "mlflow": self._mlflow,
        }
        with _quiet():
            for name in self._recipe.train.trackers:
                try:
                    told = makers[name]()
                    self._told.append(told)
                    told.on_train_begin(self._arguments, TrainerState(global_step=step), self._control, model=model)
                except Exception as error:
                    raise RunError(f"the tracker {name} does not start: {error}") from error

    def tell(self, line: Mapping[str, Any]) -> None:
        """Tell them the numbers of a line of ``metrics.jsonl``.

        Args:
            line: with ``step``; those of a ``validation`` become ``eval/…``, the others ``train/…``.
        """
        numbers = {key: value for key, value in line.items() if key != "step" and _number(value)}
        validation = {f"eval_{key}": value for key, value in line.get("validation", {}).items() if _number(value)}
        self._log(line["step"], numbers | validation)

    def final(self, step: int, validation: Mapping[str, Any]) -> None:
        """Tell them the numbers of the final validation, as ``eval/final_…``.

        Args:
            step: how many are done.
            validation: the score.
        """
        self._log(step, {f"eval_final_{key}": value for key, value in validation.items() if _number(value)})

    def _log(self, step: int, numbers: dict[str, Any]) -> None:
        state = TrainerState(global_step=step)
        with _quiet():
            for told in self._told:
                told.on_log(self._arguments, state, self._control, logs=dict(numbers))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _quiet():
            for told in self._told:
                told.on_train_end(self._arguments, TrainerState(), self._control)
            for end in self._ends:
                end(error is None)

    @staticmethod
    def _tensorboard(folder: Path, step: int) -> TrainerCallback:
        from torch.utils.tensorboard import SummaryWriter

        # What was logged after the step that training goes on from is logged again.
        return TensorBoardCallback(SummaryWriter(str(folder), purge_step=step + 1 if step else 0))  # type: ignore[no-untyped-call]

    def _wandb(self) -> TrainerCallback:
        wandb = import_module("wandb")
        if wandb.run is None:
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            wandb.init(project=project, name=self._arguments.run_name, id=self._run.run_id, resume="allow")
            self._ends.append(lambda well: wandb.finish(exit_code=0 if well else 1))
        return WandbCallback()  # type: ignore[no-untyped-call]

    def _mlflow(self) -> TrainerCallback:
        mlflow = import_module("mlflow")
        if mlflow.active_run() is None:
            if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
                mlflow.set_experiment(_PROJECT)
            own = self._run.run_id
            known = mlflow.search_runs(
                search_all_experiments=True, filter_string=f"tags.{_MLFLOW_TAG} = '{own}'", output_format="list"
            )
            before = known[0].info.run_id if known else None
            mlflow.start_run(run_id=before, run_name=self._arguments.run_name, tags={_MLFLOW_TAG: own})
            self._ends.append(lambda well: mlflow.end_run("FINISHED" if well else "FAILED"))
        return MLflowCallback()  # type: ignore[no-untyped-call]


class _Described:
    """What an integration asks of a model: its settings, here the whole recipe, and its size."""

    def __init__(self, recipe: Recipe, num_parameters: int) -> None:
        self.config, self._recipe, self._num_parameters = self, recipe, num_parameters

    def to_dict(self) -> dict[str, Any]:
        return self._recipe.model_dump(mode="json")

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def num_parameters(self) -> int:
        return self._num_parameters


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _quiet() -> redirect_stdout[Any]:
    """Standard output is the command's own; they write to standard error."""
    return redirect_stdout(sys.stderr)
