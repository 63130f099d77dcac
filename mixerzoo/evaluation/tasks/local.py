"""The tasks that ship with mixerzoo, as lm-eval's: small, home-made, and of use to compare mixers.

They need no network. No published figure is one of theirs, and another Python has another library, hence other
questions.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from mixerzoo.evaluation.tasks.questions import excerpts, held_out_documents, last_names, next_lines


def _next_line() -> list[dict[str, Any]]:
    return [
        {"context": q.context, "choices": list(q.choices), "answer": q.answer} for q in next_lines(held_out_documents())
    ]


def _last_name() -> list[dict[str, Any]]:
    return [{"context": q.context, "name": q.name} for q in last_names(held_out_documents())]


def _text() -> list[dict[str, Any]]:
    return [{"text": text} for text in excerpts(held_out_documents())]


def _metric(name: str, aggregation: str, higher_is_better: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


#: task → its rows, and what lm-eval makes of them.
_TASKS: dict[str, tuple[Callable[[], list[dict[str, Any]]], dict[str, Any]]] = {
    "stdlib_next_line": (
        _next_line,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [_metric("acc", "mean", True)],
        },
    ),
    "stdlib_last_name": (
        _last_name,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + name}}",
            "metric_list": [_metric("acc", "mean", True), _metric("perplexity", "perplexity", False)],
        },
    ),
    "stdlib_text": (
        _text,
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                _metric("bits_per_byte", "bits_per_byte", False),
                _metric("byte_perplexity", "weighted_perplexity", False),
            ],
        },
    ),
}

#: Names of the local tasks.
LOCAL_TASKS = tuple(_TASKS)
#: All of them at once.
ALL_LOCAL = "stdlib"


class LocalTask(ConfigurableTask):
    """A task whose rows are made here.

    Args:
        name: one of `LOCAL_TASKS`.

    Raises:
        DataError: this Python's library has no source text.
    """

    def __init__(self, name: str) -> None:
        self._rows, config = _TASKS[name]
        shared = {"task": name, "test_split": "test", "fewshot_split": "test", "metadata": {"version": 1.0}}
        super().__init__(config={**shared, **config})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Nothing to download: the rows are made from this Python's library."""
        self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_list(self._rows())})


def library() -> str:
    """Whose source text the questions are about."""
    return f"{platform.python_implementation()} {platform.python_version()}"
