"""Tasks on lm-eval: answers that are known, checkpoints side by side, and tasks that cannot be had."""

from __future__ import annotations

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install -e ".[eval]"')

from lm_eval.api.model import LM

import command_line
from mixerzoo.data import TextTokenizer
from mixerzoo.errors import DataError
from mixerzoo.evaluation.side_by_side import Settings, compare
from mixerzoo.evaluation.tasks import load_tasks, local
from mixerzoo.evaluation.tasks.harness import _refuse_without_questions
from mixerzoo.evaluation.tasks.language_model import DecoderLM
from mixerzoo.evaluation.tasks.local import LOCAL_TASKS, LocalTask
from mixerzoo.evaluation.tasks.questions import held_out_documents, last_names, next_lines
from mixerzoo.recipe.building import build
from runs import tiny_recipe

# lm-eval is large, so CI does without it.
pytestmark = pytest.mark.slow

run = partial(command_line.run, "eval", columns=200)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_that_asks_nothing_is_refused(limit):
    with pytest.raises(DataError, match=r"limit is .*; it must be a whole number of at least 1"):
        load_tasks(["stdlib_text"], limit=limit)


def test_a_task_without_questions_is_refused(monkeypatch):
    import datasets

    with pytest.raises(DataError, match="no task is named"):
        load_tasks([])
    for empty in ([], datasets.Dataset.from_list([])):
        with pytest.raises(DataError, match="'some' has no questions, so there is nothing to ask"):
            _refuse_without_questions("some", SimpleNamespace(eval_docs=empty))

    def no_rows(*_):
        return datasets.Dataset.from_list([])[0]

    monkeypatch.setattr("mixerzoo.evaluation.tasks.harness.TaskManager.load", no_rows)
    with pytest.raises(DataError, match="task 'hellaswag' cannot be loaded: "):
        load_tasks(["hellaswag"])


def test_a_group_without_tasks_is_refused(monkeypatch):
    from lm_eval.api.group import Group

    monkeypatch.setattr("mixerzoo.evaluation.tasks.harness._load", lambda manager, name: [Group(name=name)])
    with pytest.raises(DataError, match="'hellaswag' is a group without tasks"):
        load_tasks(["stdlib_text", "hellaswag"])


def test_a_figure_that_is_no_number_is_refused():
    class Unsure(Knowing):
        def loglikelihood_rolling(self, requests):
            return [math.nan for _ in requests]

    with pytest.raises(DataError, match=r"task 'stdlib_text': its .* is not a number"):
        load_tasks(["stdlib_text"], limit=2).run(Unsure())


class Knowing(LM):
    """Knows every answer."""

    def __init__(self) -> None:
        super().__init__()
        lines, names = next_lines(held_out_documents()), last_names(held_out_documents())
        self.right = {(line.context, line.choices[line.answer]) for line in lines}
        self.right |= {(name.context, " " + name.name) for name in names}
        self.asked: list[tuple] = []

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [(0.0, True) if request.args in self.right else (-50.0, False) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [0.0 for _ in requests]

    def generate_until(self, requests):
        raise NotImplementedError


def test_who_knows_the_answers_gets_them_right():
    figures = load_tasks(["stdlib"]).run(Knowing())
    assert list(figures) == list(LOCAL_TASKS)
    assert figures["stdlib_next_line"]["acc"] == figures["stdlib_last_name"]["acc"] == 1.0
    assert figures["stdlib_next_line"]["num_documents"] == figures["stdlib_last_name"]["num_documents"] == 400
    assert figures["stdlib_last_name"]["perplexity"] == 1.0
    assert figures["stdlib_text"]["bits_per_byte"] == 0.0


def test_who_knows_nothing_is_at_chance():
    decoder = build(tiny_recipe("mixer={name: residual}"))
    torch.nn.init.zeros_(decoder.lm_head.weight)
    model = DecoderLM(decoder, TextTokenizer.for_bytes(), window=1000)
    figures = load_tasks(["stdlib"]).run(model)
    line = figures["stdlib_next_line"]
    assert abs(line["acc"] - 0.25) < 3 * line["acc_stderr"]
    assert line["acc_stderr"] == pytest.approx(math.sqrt(line["acc"] * (1 - line["acc"]) / 399), rel=1e-9)
    assert figures["stdlib_last_name"]["acc"] == 0
    assert figures["stdlib_text"]["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_every_model_sees_the_same_examples():
    tasks = load_tasks(["stdlib_next_line"], limit=5)
    for task in tasks._loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=2)
    first, second = Knowing(), Knowing()
    assert tasks.run(first) == tasks.run(second)
    assert first.asked == second.asked
    assert len(first.asked) == 5 * 4
    assert len(first.asked[0][0]) > len(next_lines(held_out_documents())[0].context)


def test_the_command_compares_checkpoints_on_tasks(checkpoints, tmp_path):
    result = run(*checkpoints, "--tasks", "stdlib", "--limit", "6", "--json", "--out", tmp_path / "out.json")
    assert result.exit_code == 0, result.stderr
    both = json.loads(result.stdout)
    assert both == json.loads((tmp_path / "out.json").read_text())
    for figures in both:
        assert list(figures["tasks"]) == list(LOCAL_TASKS)
        assert figures["tasks"]["stdlib_next_line"]["num_documents"] == 6
    shown = run(*checkpoints, "--tasks", "stdlib", "--limit", "6").stdout
    for figures in both:
        line = figures["tasks"]["stdlib_next_line"]
        assert f"{line['acc']:.4f} ± {line['acc_stderr']:.4f}" in shown


def test_rolling_bits_per_byte_are_those_of_text_files(checkpoints):
    tasks = load_tasks(["stdlib_text"], limit=1)
    [text] = [row["text"] for row in tasks._loaded["tasks"]["stdlib_text"].eval_docs.select([0])]
    settings = Settings(window=50, dtype="float64")
    [figures] = compare(checkpoints[1:], texts={"file": text}, tasks=tasks, settings=settings)
    assert figures["tasks"]["stdlib_text"]["bits_per_byte"] == pytest.approx(
        figures["texts"]["file"]["bits_per_byte"], rel=1e-12
    )


def test_tasks_that_cannot_be_had_are_one_line_each(checkpoints, monkeypatch):
    monkeypatch.setattr(
        "mixerzoo.evaluation.side_by_side.load_checkpoint", lambda *_, **__: pytest.fail("weights were read")
    )

    def line(task: str) -> str:
        result = run(checkpoints[0], "--tasks", task)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        loading, error = result.stderr.splitlines()
        assert loading.startswith("Load tasks")
        return error

    assert "no task 'stdlib_next_lines' (did you mean 'stdlib_next_line'?)" in line("stdlib_next_lines")
    assert "did you mean 'hellaswag'" in line("stdlib, helaswag")
    offline = line("hellaswag")  # the tests have no network
    assert "task 'hellaswag' cannot be loaded: " in offline
    assert "Rowan/hellaswag" in offline


def test_a_task_that_has_no_examples_is_told(checkpoints, monkeypatch):
    rows, config = local._TASKS["stdlib_last_name"]
    monkeypatch.setitem(local._TASKS, "stdlib_last_name", (rows, {**config, "num_fewshot": 0}))
    result = run(checkpoints[0], "--tasks", "stdlib_last_name,stdlib_next_line", "--fewshot", "1", "--limit", "1")
    assert result.exit_code == 0, result.stderr
    assert "--fewshot changes nothing for stdlib_last_name: the task itself says no examples" in result.stderr


def test_a_task_that_runs_code_is_refused(monkeypatch):
    monkeypatch.setattr(LocalTask, "UNSAFE_CODE", True, raising=False)
    with pytest.raises(DataError, match="'stdlib_text' runs the code that a model writes"):
        load_tasks(["stdlib_text"])
