"""A run directory: held by one process at a time, claimed before the work, never anybody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.data import prepare
from mixerzoo.errors import BackendError, DataError, RunError
from mixerzoo.runs.checkpoints import complete_checkpoints
from mixerzoo.runs.directory import RunDirectory
from mixerzoo.training.run import Reporter, train
from runs import OVERRIDES, QUICKSTART, tiny_recipe

SHORT = ("train.steps=2", "train.checkpoint_interval=2", "eval.interval=1")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def run(tmp_path):
    """A short run that is finished."""
    train(tiny_recipe(*SHORT), tmp_path / "run")
    return tmp_path / "run"


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def command(*arguments: str | Path, recipe: Path = QUICKSTART, short: bool = True) -> Result:
    overrides = (*OVERRIDES, *SHORT) if short else OVERRIDES
    return CliRunner().invoke(app, ["train", str(recipe), *overrides, *map(str, arguments)])


def error_of(*arguments: str | Path, **options: Any) -> str:
    result = command(*arguments, **options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


# One at a time.


def test_two_trainings_into_one_directory_are_refused(run):
    before = files(run)
    with RunDirectory(run).claimed():
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match="another process is training into"):
                train(tiny_recipe(*SHORT), run, **options)
        assert "another process is training into" in error_of("--out", run, "--resume")
    assert files(run) == before
    train(tiny_recipe(*SHORT), run, resume=True)


def test_the_directory_is_held_from_before_the_data_to_the_end(tmp_path):
    class Second(Reporter):
        refused = 0

        def data(self, stage: str, done: int, total: int) -> None:
            self.again()

        def step(self, step: int, loss: float | None, tokens_per_second: float) -> None:
            self.again()

        def final_validation(self, done: int, total: int) -> None:
            self.again()

        def again(self) -> None:
            with pytest.raises(RunError, match="another process is training into"), held.claimed():
                pass
            self.refused += 1

    held, second = RunDirectory(tmp_path / "run"), Second()
    train(tiny_recipe(*SHORT), tmp_path / "run", reporter=second)
    assert second.refused > 4
    with held.claimed():
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mixerzoo.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).claimed():\n    print('held', flush=True)\n    signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match="another process"), RunDirectory(tmp_path / "run").claimed():
            pass
        process.kill()
    train(tiny_recipe(*SHORT), tmp_path / "run")


def test_a_run_that_began_and_ended_in_between_is_not_replaced(tmp_path, monkeypatch):
    claimed = RunDirectory.claimed

    def late(self):
        monkeypatch.setattr(RunDirectory, "claimed", claimed)
        train(tiny_recipe(*SHORT), self.path)
        return self.claimed()

    monkeypatch.setattr(RunDirectory, "claimed", late)
    with pytest.raises(RunError, match="already holds a run"):
        train(tiny_recipe(*SHORT, "seed=1"), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").recipe().seed == 0


# Before the work.


@pytest.mark.parametrize("backend", ["flex", "flash", "xformers"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="both can train on a GPU")
def test_a_backend_that_cannot_train_here_is_refused_before_the_old_run_goes(backend, run):
    before = files(run)
    with pytest.raises(BackendError, match=r"set model\.attention_backend to 'sdpa' \(or 'eager'\)$"):
        train(tiny_recipe(*SHORT, f"model.attention_backend={backend}"), run, overwrite=True)
    assert files(run) == before


def test_a_failure_before_the_first_file_leaves_nothing(tmp_path):
    with pytest.raises(DataError):
        train(tiny_recipe("data.source={name: text, paths: [nowhere.txt]}"), tmp_path / "a" / "b" / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError):
        train(tiny_recipe("data.source={name: text, paths: [nowhere.txt]}"), tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_directory_that_cannot_be_made_or_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path / 'file'} exists and is not a directory" in error_of("--out", tmp_path / "file")
    assert f"Error: {tmp_path / 'file'}" in error_of("--out", tmp_path / "file" / "sub")
    assert "Not a directory" in error_of("--out", tmp_path / "file" / "sub")
    monkeypatch.setattr("mixerzoo.runs.directory.tempfile.TemporaryFile", _read_only)
    monkeypatch.setattr("mixerzoo.training.run.prepare", _too_late)
    assert error_of("--out", tmp_path / "run") == "Error: /there: Read-only file system\n"
    assert not (tmp_path / "run").exists()


def _read_only(*_: Any, **__: Any) -> None:
    raise OSError(30, "Read-only file system", "/there")


def _too_late(*_: Any, **__: Any) -> None:
    raise AssertionError("work has begun")


@pytest.mark.parametrize(
    ("limit", "named"),
    [(15_000, "the cache directory"), (100_000, "model.safetensors"), (200_000, "optimizer")],
)
def test_a_disk_that_is_full_is_one_message(limit, named, tmp_path):
    script = (
        "import resource, sys\nfrom mixerzoo.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nmain()\n"
    )
    # Python leaves a module that it compiled cut short behind, for others to stumble over.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if named == "the cache directory":
        environment["MIXERZOO_CACHE"] = str(tmp_path / "cache")
    else:
        prepare(tiny_recipe(*SHORT).data)
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(QUICKSTART), *OVERRIDES, *SHORT, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert named in last
    assert "Traceback" not in done.stderr


def test_every_rank_of_a_wrong_recipe_says_it_once(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "mixerzoo"]
    done = subprocess.run(
        [*command, "train", str(QUICKSTART), "train.stepps=1", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.count("train.stepps: unknown key") == 1


# Overwriting.


@pytest.mark.parametrize("name", ["recipe.yaml", "mine.yaml", "recipes/mine.yaml"])
def test_the_directory_of_the_recipe_is_not_replaced(name, run):
    recipe = run / name
    recipe.parent.mkdir(exist_ok=True)
    if not recipe.exists():
        recipe.write_text(QUICKSTART.read_text())
    before = files(run)
    assert "which --overwrite would replace" in error_of("--out", run, "--overwrite", recipe=recipe)
    assert files(run) == before


@pytest.mark.parametrize("foreign", ['{"a": 1}', "[]", "3", "", "no json"])
def test_run_json_and_recipe_of_somebody_else(foreign, tmp_path):
    (tmp_path / "run.json").write_text(foreign)
    (tmp_path / "recipe.yaml").write_text("eggs: 3")
    before = files(tmp_path)
    for options in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(RunError, match="does not hold a run"):
            train(tiny_recipe(*SHORT), tmp_path, **options)
    assert files(tmp_path) == before


# Resuming.


def test_there_must_be_something_to_resume(tmp_path):
    message = error_of("--out", tmp_path / "tpyo", "--resume")
    assert message == (
        f"Error: there is no run to resume: {tmp_path / 'tpyo'} does not exist; start one without --resume\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_resuming_says_what_there_is_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    started = command("--out", tmp_path / "run", "--resume")
    assert started.exit_code == 0
    assert "holds no step of a run yet: starting at the beginning" in started.stderr
    finished = command("--out", tmp_path / "run", "--resume")
    assert finished.exit_code == 0
    assert f"{tmp_path / 'run'} is already finished" in finished.stderr
    assert finished.stdout == started.stdout


@pytest.mark.parametrize("installed", [False, True])
def test_a_mixer_that_is_gone_names_its_plugin(installed, run):
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: depth_attention", "name: gated_sum"))
    record = json.loads((run / "run.json").read_text())
    origin = {"distribution": "pluggy" if installed else "somebody-s-mixers", "version": "3.1"}
    (run / "run.json").write_text(json.dumps(record | {"mixer_plugin": origin}))
    copy = run.parent / "copy.yaml"
    copy.write_text(recipe.read_text())
    for result in (CliRunner().invoke(app, ["eval", str(run)]), command("--out", run, "--resume", recipe=copy)):
        assert result.exit_code == 2
        assert f"comes from the plugin {origin['distribution']} 3.1" in result.stderr
        assert ("pip install" in result.stderr) == (not installed)


# What is told on the way.


def test_without_a_terminal_there_are_lines(tmp_path):
    done = command("--out", tmp_path / "run", short=False)
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    logged = [line for line in lines if line.startswith("step ") and "loss" in line and "validation" not in line]
    assert [line.split(":")[0] for line in logged] == [f"step {step}/12" for step in (2, 4, 6, 8, 10, 12)]
    assert all("tokens/s" in line for line in logged)
    (validation,) = [line for line in lines if "validation loss" in line]
    assert validation.startswith("step 6: validation loss ")
    bits = float(validation.split("about ")[1].removesuffix(" bits per byte"))
    assert 6 < bits < 9  # near log2 of 257


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_a_signal_says_how_to_go_on(number, code, word, tmp_path):
    directory = tmp_path / "a run"
    arguments = [str(QUICKSTART), *OVERRIDES, "train.steps=100000", "train.log_interval=4", "--out", str(directory)]
    with subprocess.Popen(
        [sys.executable, "-m", "mixerzoo", "train", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has interrupts ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  nothing else runs
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 8/"):
                break
        process.send_signal(number)
        last = process.stderr.read().splitlines()[-2:]
        assert process.wait(60) == code
    assert last[0].startswith(f"{word} after step ")
    newest = complete_checkpoints(directory / "checkpoints")[-1][0]
    assert last[0].startswith(f"{word} after step {newest}.")
    assert f"after step {newest}, the newest checkpoint" in last[0]
    assert last[1].startswith(f"  mixerzoo train {QUICKSTART} ")
    assert last[1].endswith(f"--out '{directory}' --resume")


def test_an_unfinished_run_has_its_tokenizer(tmp_path):
    class Stop(Reporter):
        def step(self, step: int, loss: float | None, tokens_per_second: float) -> None:
            if step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "run", reporter=Stop())
    assert mixerzoo.TextTokenizer.load(tmp_path / "run").vocab_size == 257
    ((_, newest),) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    done = CliRunner().invoke(app, ["generate", str(newest), "--prompt", "def ", "--max-new-tokens", "2"])
    assert done.exit_code == 0, done.stderr
    unfinished = CliRunner().invoke(app, ["eval", str(tmp_path / "run")])
    assert unfinished.exit_code == 2
    assert f"not finished; continue it with mixerzoo train … --resume; until then its checkpoint {newest} can" in (
        unfinished.stderr
    )


def test_a_checkpoint_of_an_unfinished_run_can_be_given_and_is_named(tmp_path):
    run, decoder = tmp_path / "run", mixerzoo.build(tiny_recipe("mixer={name: residual}"))
    for step in (2, 10):
        mixerzoo.save_checkpoint(decoder, run / "checkpoints" / f"checkpoint-{step}")
    mixerzoo.TextTokenizer.for_bytes().save(run)
    (run / "recipe.yaml").write_text(tiny_recipe("mixer={name: residual}").to_yaml(), encoding="utf-8")
    first, newest = (run / "checkpoints" / f"checkpoint-{step}" for step in (2, 10))

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)))

    words = f"{run}: not a checkpoint: it has no config.json; within it there is {newest}, {first}\n"
    text = tmp_path / "text.txt"
    text.write_text("def f(x):\n", encoding="utf-8")
    for arguments in (
        ["generate", run, "--max-new-tokens", "1"],
        ["eval", run, "--text", text],
        ["inspect", run, "--prompt", "abc"],
        ["export", run, "--format", "qwen3", "--out", tmp_path / "out"],
        ["import", run, "--out", tmp_path / "out"],
    ):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert result.stderr.endswith(words), result.stderr
        assert call(arguments[0], newest, *arguments[2:]).exit_code == 0, arguments
        if tmp_path / "out" in arguments:
            # What the checkpoints of a run share is theirs.
            assert (tmp_path / "out" / "tokenizer.json").exists()
            (tmp_path / "out").rename(tmp_path / arguments[0])
    assert f"it is a checkpoint of {run}, and takes a text of your own" in call("eval", newest).stderr
    assert f"until then its checkpoint {newest} can be given" in call("inspect", newest).stderr


def test_metrics_are_json_also_where_the_loss_is_no_number(tmp_path):
    with pytest.raises(RunError, match="loss became"):
        train(
            tiny_recipe("train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_fraction=0"),
            tmp_path / "run",
        )

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert found[-1]["loss"] is None


def test_results_are_json_also_where_perplexity_is_infinite(run):
    directory = RunDirectory(run)
    directory.finish(directory.result() | {"perplexity": float("inf")})
    assert directory.result()["perplexity"] is None
    shown = command("--out", run, "--resume")
    assert shown.exit_code == 0
    assert "infinite" in shown.stdout


def test_eval_takes_a_device(run):
    assert CliRunner().invoke(app, ["eval", str(run), "--device", "cpu", "--json"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["eval", str(run), "--device", "abacus"])
    assert wrong.exit_code == 2
    assert "device 'abacus' cannot be used here" in wrong.stderr


def test_the_same_function_whatever_was_imported_before(run):
    import mixerzoo.training.run

    assert mixerzoo.train is mixerzoo.training.run.train
    assert RunDirectory(run).result() == mixerzoo.train(tiny_recipe(*SHORT), run, resume=True)
