"""How a run ends: never as finished where it did not work, in words where it cannot go on, with true figures."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import mixerzoo
from mixerzoo.errors import DataError, MixerzooError, RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.inference.scoring import Score
from mixerzoo.runs.checkpoints import complete_checkpoints
from mixerzoo.training import run as training
from mixerzoo.training import run_callback, stopwatch
from mixerzoo.training.run import Reporter, train
from mixerzoo.training.trainer import MixerZooTrainer
from mixerzoo.yaml_text import from_yaml
from reporters import At
from runs import tiny_recipe

SHORT = ("train.steps=4", "train.checkpoint_interval=2", "eval.interval=2")
#: Log lines fall on none of the steps.
UNLOGGED = (*SHORT, "train.log_interval=100")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_recipe(*SHORT), directory)
    return directory


# Numbers that are none.


def spoilt(monkeypatch, step: int, value: float, what: str) -> None:
    """Make the loss, or one weight, of a step something else."""
    old = MixerZooTrainer.training_step

    def training_step(self, *arguments, **options):
        loss = old(self, *arguments, **options)
        if self.state.global_step == step - 1:
            if what == "loss":
                return loss * value
            with torch.no_grad():
                self.decoder.model.norm.weight[0] = value
        return loss

    monkeypatch.setattr(MixerZooTrainer, "training_step", training_step)


@pytest.mark.parametrize("what", ["loss", "weights"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "left"), [(1, []), (3, [2]), (4, [2])])
def test_what_is_not_finite_never_ends_as_finished(what, value, step, left, tmp_path, monkeypatch):
    spoilt(monkeypatch, step, value, what)
    with pytest.raises(RunError, match=r"the loss became|the loss of the validation|norm\.weight are not finite"):
        train(tiny_recipe(*UNLOGGED), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert [step for step, _ in complete_checkpoints(tmp_path / "run" / "checkpoints")] == left


@pytest.mark.parametrize(("whole", "words"), [(False, "validation after step 2"), (True, "final validation")])
def test_a_validation_that_is_not_finite_ends_the_run(whole, words, tmp_path, monkeypatch):
    old = run_callback.score

    def score(*arguments, max_sequences, **options):
        result = old(*arguments, max_sequences=max_sequences, **options)
        return Score(math.nan, 1, None) if whole == (max_sequences is None) else result

    monkeypatch.setattr(run_callback, "score", score)
    with pytest.raises(RunError, match=f"the loss of the {words} is nan"):
        train(tiny_recipe(*UNLOGGED), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


# What goes wrong outside.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out(error, tmp_path, monkeypatch):
    def training_step(*_, **__):
        raise error

    monkeypatch.setattr(MixerZooTrainer, "training_step", training_step)
    with pytest.raises(RunError, match=r"(?s)out of memory: .*lower train\.batch_size"):
        train(tiny_recipe(*SHORT), tmp_path / "run")


def test_any_other_failure_keeps_its_traceback(tmp_path, monkeypatch):
    def training_step(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(MixerZooTrainer, "training_step", training_step)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tiny_recipe(*SHORT), tmp_path / "run")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_disk_that_is_full_names_the_file(name, tmp_path, monkeypatch):
    def full(value, path, *arguments, **options):
        if Path(path).name == name:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        return save(value, path, *arguments, **options)

    def no_room(self, path):
        raise OSError(28, "No space left on device")

    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    if name == "trainer_state.json":
        monkeypatch.setattr("transformers.TrainerState.save_to_json", no_room)
        name = "checkpoint-2"
    with pytest.raises((RunError, OSError)) as caught:
        train(tiny_recipe(*SHORT), tmp_path / "run")
    said = caught.value
    assert name in (str(said.filename) if isinstance(said, OSError) else str(said))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_directory_that_is_deleted_underneath(step, tmp_path):
    class Delete(Reporter):
        def step(self, number: int, loss: float | None, tokens_per_second: float | None) -> None:
            if number == step:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises((RunError, OSError)) as caught:
        train(tiny_recipe(*UNLOGGED, "eval.interval=100"), tmp_path / "run", reporter=Delete())
    said = caught.value
    assert str(tmp_path / "run") in (str(said.filename) if isinstance(said, OSError) else str(said))
    assert not (tmp_path / "run").exists()


def test_yardsticks_come_after_the_weights_and_are_not_needed(tmp_path, monkeypatch):
    def yardsticks(data):
        assert (tmp_path / "run" / "model.safetensors").exists()
        raise DataError("the cache is read-only")

    monkeypatch.setattr(training, "yardsticks", yardsticks)
    hears = At()
    result = train(tiny_recipe(*SHORT), tmp_path / "run", reporter=hears)
    assert result["xz_bits_per_byte"] is None
    assert "the cache is read-only" in hears.notices[-1]
    assert evaluate_run(tmp_path / "run")["bigram_bits_per_byte"] is None


# Figures.


def test_the_clock_leaves_out_the_first_step_and_the_pauses(monkeypatch):
    now = 0.0
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now)
    watch = stopwatch.Stopwatch()
    assert watch.steps_per_second is None
    watch.start()
    now += 100
    watch.step()
    assert watch.steps_per_second == 0.01
    for _ in range(4):
        now += 2
        watch.step()
        with watch.paused():
            now += 50
    assert watch.steps_per_second == 0.5


def test_a_compiler_s_step_is_no_figure():
    watch = stopwatch.Stopwatch(compiled=True)
    watch.start()
    watch.step()
    assert watch.steps_per_second is None


def test_tokens_per_second_are_those_of_training_alone(tmp_path, monkeypatch):
    old = run_callback.score

    def slow(*arguments, **options):
        time.sleep(2)
        return old(*arguments, **options)

    monkeypatch.setattr(run_callback, "score", slow)
    began = time.monotonic()
    result = train(tiny_recipe("train.steps=6", "eval.interval=1"), tmp_path / "run")
    over_all = 6 * 4 * 2 * 32 / (time.monotonic() - began)
    assert result["tokens_per_second"] > 2 * over_all
    lines = mixerzoo.read_metrics(tmp_path / "run")
    assert [line["tokens_per_second"] > 2 * over_all for line in lines if "loss" in line] == [True] * 3


def test_many_epochs_get_a_notice(tmp_path):
    hears = At()
    train(tiny_recipe(*SHORT, "data.source.max_bytes=3000"), tmp_path / "run", reporter=hears)
    assert not [notice for notice in hears.notices if "reads its text" in notice]
    small = tiny_recipe("train.steps=60", "train.log_interval=60", "eval.interval=60", "data.source.max_bytes=3000")
    train(small, tmp_path / "small", reporter=hears)
    (notice,) = [notice for notice in hears.notices if "reads its text" in notice]
    assert re.match(r"The run reads its text \d[\d.]* times; beyond 4 times, ", notice)


# From Python.


def test_what_train_and_evaluate_take(run, tmp_path):
    recipe = tiny_recipe(*SHORT)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    results = [
        mixerzoo.train(path, str(tmp_path / "a")),
        mixerzoo.train(from_yaml(recipe.to_yaml()), tmp_path / "b"),
        mixerzoo.evaluate_run(str(run), device="cpu"),
    ]
    assert len({result["loss"] for result in results}) == 1


def test_results_as_plain_values_and_tables(run):
    results = mixerzoo.read_results(run, str(run))
    assert results == [{"directory": str(run), **json.loads((run / "result.json").read_text())}] * 2
    pandas = pytest.importorskip("pandas")
    table = mixerzoo.results_frame(run)
    assert isinstance(table, pandas.DataFrame)
    assert table.loc[str(run), "loss"] == results[0]["loss"]
    curve = mixerzoo.metrics_frame(run)
    assert list(curve.index) == [2, 4]
    assert curve.loc[2, "validation.loss"] == mixerzoo.read_metrics(run)[0]["validation"]["loss"]


def test_results_that_are_not_there(run, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="no such directory"):
        mixerzoo.read_results(tmp_path / "nowhere")
    with pytest.raises(RunError, match="does not exist"):
        mixerzoo.read_metrics(tmp_path / "nowhere")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "metrics.jsonl").write_text('{"step": 1}\n{"step": "a"}\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2: damaged"):
        mixerzoo.read_metrics(copy)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MixerzooError, match="pip install pandas"):
        mixerzoo.results_frame(run)


def test_the_reporter_for_scripts_writes_lines_where_nothing_moves(tmp_path):
    with (
        (tmp_path / "said").open("w") as stream,
        mixerzoo.ProgressReporter(Console(file=stream, width=200)) as reporter,
    ):
        train(tiny_recipe(*SHORT), tmp_path / "run", reporter=reporter)
    said = (tmp_path / "said").read_text()
    assert reporter.last_step == 4
    assert "step 2/4: loss " in said
    assert re.search(r" validation tokens \(\d+\.\d [kM]B and [1-9]\d*\.\d kB of text\)", said)
    assert "Validate …" in said


# Kills and power cuts.


def _kills(*arguments: str, place: Path) -> None:
    script = Path(__file__).parents[2] / "tools" / "kills.py"
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, cwd=place, check=False)
    if "mount" in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip("mounting takes root and loop devices")
    assert done.returncode == 0, done.stderr


def test_the_power_is_cut(tmp_path):
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no ext4 here")
    _kills("cuts", "2", place=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("kills", "100"), ("cuts", "20"), ("processes", "10")])
def test_many_kills_and_power_cuts(what, count, tmp_path):
    _kills(what, count, place=tmp_path)
