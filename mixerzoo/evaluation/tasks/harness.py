"""Finds lm-eval's tasks and runs them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from mixerzoo.errors import DataError, did_you_mean
from mixerzoo.evaluation.tasks.language_model import DecoderLM
from mixerzoo.evaluation.tasks.local import ALL_LOCAL, LOCAL_TASKS, LocalTask
from mixerzoo.process import errors_alone

# Of the standard errors that have no formula.
_RESAMPLES = 1000
_SEED = 1234
#: What lm-eval marks a task with → why it is refused.
_BEYOND_US = {"UNSAFE_CODE": "runs the code that a model writes", "MULTIMODAL": "shows pictures"}


class TaskSet:
    """Tasks with their data at hand; arguments as in `mixerzoo.evaluation.tasks.load_tasks`."""

    def __init__(self, names: Sequence[str], *, fewshot: int | None = None, limit: int | None = None) -> None:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise DataError(f"limit is {limit!r}; it must be a whole number of at least 1, or None for all questions")
        self._limit = limit
        chosen = [name for given in names for name in (LOCAL_TASKS if given == ALL_LOCAL else (given,))]
        chosen = list(dict.fromkeys(chosen))
        foreign = [name for name in chosen if name not in LOCAL_TASKS]
        manager = TaskManager(include_defaults=bool(foreign))
        known = [ALL_LOCAL, *LOCAL_TASKS, *manager.all_tasks]
        for name in foreign:
            if name not in known:
                raise DataError(
                    f"there is no task {name!r}{did_you_mean(name, known)}; local tasks: {', '.join(LOCAL_TASKS)}; "
                    "`lm-eval ls tasks` lists the others"
                )
        parts = [[LocalTask(name)] if name in LOCAL_TASKS else _load(manager, name) for name in chosen]
        for name, part in zip(chosen, parts, strict=True):
            if not any(_tasks_of(each) for each in part):
                raise DataError(f"task {name!r} is a group without tasks, so there is nothing to ask")
        #: Tasks for which examples were asked, and which say that they have none.
        self.without_examples: list[str] = []
        self._loaded = manager.load([part for each in parts for part in each])
        if not self._loaded["tasks"]:
            raise DataError("no task is named, so there is nothing to ask")
        for name, task in self._loaded["tasks"].items():
            for mark, what in _BEYOND_US.items():
                if getattr(task, mark, False):
                    raise DataError(f"task {name!r} {what}, which mixerzoo does not do")
            _refuse_without_questions(name, task)
            # As in lm-eval's own command, a task that says 0 stays so.
            said = task.get_config("num_fewshot")
            if fewshot and said == 0:
                self.without_examples.append(name)
            task.set_config(key="num_fewshot", value=fewshot if fewshot is not None and said != 0 else said or 0)

    def run(self, model: DecoderLM) -> dict[str, dict[str, Any]]:
        """The figures of each task.

        Args:
            model: what to ask.

        Returns:
            Task → metric → value, with ``METRIC_stderr`` where there is one, and ``num_documents``. A metric of a
            filter is called ``METRIC,FILTER``.

        Raises:
            DataError: a task wants what the model cannot do.
        """
        for task in self._loaded["tasks"].values():
            task.set_fewshot_seed(seed=_SEED)  # every model sees the same examples
        with _alone(), redirect_stdout(sys.stderr):
            results = evaluate(model, self._loaded, limit=self._limit, bootstrap_iters=_RESAMPLES, log_samples=False)
        figures = {**results["results"], **results.get("groups", {})}
        found = {name: _plain(values) for name, values in figures.items()}
        for name, values in found.items():
            for metric, value in values.items():
                if math.isnan(value) and "_stderr" not in metric:
                    raise DataError(f"task {name!r}: its {metric} is not a number, so there is no figure to report")
        return found


def _tasks_of(part: Any) -> list[Any]:
    """The tasks of a group at any depth, or the task itself."""
    return list(part.get_all_tasks()) if hasattr(part, "get_all_tasks") else [part]


def _refuse_without_questions(name: str, task: Any) -> None:
    try:
        first = next(iter(task.eval_docs), None)
    except ValueError as error:  # it has neither a test nor a validation split
        raise DataError(f"task {name!r} cannot be asked: {error}") from error
    if first is None:
        raise DataError(f"task {name!r} has no questions, so there is nothing to ask")


def _load(manager: TaskManager, name: str) -> list[Any]:
    """A task, a group, or the tasks of a tag.

    Raises:
        DataError: its data or a package that it needs cannot be had.
    """
    try:
        with errors_alone("huggingface_hub"):  # it tells of every attempt
            loaded = manager.load([name])
    except Exception as error:  # the network, a package, no rows at all: a task's own code may fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"task {name!r} cannot be loaded: {reason}") from error
    group = loaded["groups"].get(name)
    return list(loaded["tasks"].values()) if group is None else [group]


@contextmanager
def _alone() -> Iterator[None]:
    """lm-eval would resample in forks of what torch holds, and say so where our JSON goes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names without lm-eval's default filter, and numbers only."""
    figures = {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, int | float)}
    return {"num_documents" if key == "sample_len" else key: value for key, value in figures.items()}
