"""Tasks on lm-eval (the extra ``eval``): its own ones by name, and small ones from the standard library's source.

`load_tasks` is the way in. ``local``, ``language_model`` and ``harness`` import lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mixerzoo.errors import DataError

if TYPE_CHECKING:
    from mixerzoo.evaluation.tasks.harness import TaskSet

__all__ = ["load_tasks"]


def load_tasks(names: Sequence[str], *, fewshot: int | None = None, limit: int | None = None) -> TaskSet:
    """Tasks with their data at hand, to be run on any number of models.

    Args:
        names: of tasks, groups and tags that lm-eval knows, or of local tasks (``stdlib`` is all of those).
        fewshot: examples before each question; default: as each task says. A task that says 0 stays at 0.
        limit: questions of each task at most; default: all.

    Raises:
        DataError: lm-eval is not installed, there is no such task, or its data or a package that it needs cannot
            be had.
    """
    if find_spec("lm_eval") is None:
        raise DataError('tasks need lm-eval, which is not installed: pip install "mixerzoo[eval]"')
    from mixerzoo.evaluation.tasks.harness import TaskSet

    return TaskSet(names, fewshot=fewshot, limit=limit)
