"""Going on from files that are not what the run wrote: the bits of the untouched run, or words."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixerzoo.cli import app
from mixerzoo.errors import RunError
from mixerzoo.files.manifest import MANIFEST_FILE, write_manifest
from mixerzoo.training.records import MEASURED
from mixerzoo.training.run import train
from reporters import At, stopped
from runs import OVERRIDES, QUICKSTART, fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 4 and 8."""
    return stopped(tmp_path_factory.mktemp("runs") / "unfinished", 9)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another run of the same shapes, with the same checkpoints."""
    directory = tmp_path_factory.mktemp("runs") / "other"
    train(tiny_recipe("seed=1", "train.keep_checkpoints=3"), directory)
    return directory


@pytest.mark.parametrize("damage", ["cut short", "empty", "missing", "of another run", "shape"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name, damage, unfinished, other, finished, tmp_path):
    if damage == "shape" and name != "optimizer.pt":
        pytest.skip("the optimizer's alone has shapes")
    run = shutil.copytree(unfinished, tmp_path / "run")
    path = run / "checkpoints" / "checkpoint-8" / name
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    elif damage == "of another run":
        train(tiny_recipe("seed=1", "train.steps=8"), tmp_path / "other")
        shutil.copyfile(tmp_path / "other" / "checkpoints" / "checkpoint-8" / name, path)
    else:
        state = torch.load(path, weights_only=True)
        state["state"][0]["exp_avg"] = torch.zeros(1)
        torch.save(state, path)
    hears = At()
    train(tiny_recipe(), run, resume=True, reporter=hears)
    assert hears.first_step == 4
    assert any(str(path) in notice and "going on from checkpoint-4" in notice for notice in hears.notices)
    assert fingerprint(run) == fingerprint(finished)
    assert (run / "checkpoints" / "checkpoint-8.damaged").is_dir()


def test_a_checkpoint_under_another_name_or_of_another_run(unfinished, other, finished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    os.rename(run / "checkpoints" / "checkpoint-8", run / "checkpoints" / "checkpoint-10")
    shutil.copytree(other / "checkpoints" / "checkpoint-12", run / "checkpoints" / "checkpoint-12")
    hears = At()
    train(tiny_recipe(), run, resume=True, reporter=hears)
    said = "\n".join(hears.notices)
    assert "checkpoint-12 belongs to another run" in said
    assert "checkpoint-10 was taken after step 8" in said
    assert fingerprint(run) == fingerprint(finished)


def test_no_checkpoint_that_can_be_used_is_not_a_new_beginning(unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    for path in run.rglob("scheduler.pt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"(?s)no checkpoint .*checkpoint-8/scheduler\.pt is empty.*--overwrite"):
        train(tiny_recipe(), run, resume=True)


@pytest.mark.parametrize("kind", ["finished", "unfinished"])
def test_a_run_that_lost_its_recipe_is_not_begun_anew(kind, finished, unfinished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree({"finished": finished, "unfinished": unfinished}[kind], run)
    (run / "recipe.yaml").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"not its recipe\.yaml"):
        train(tiny_recipe(), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_cannot_be_read_is_not_damaged(unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    path = run / "checkpoints" / "checkpoint-8" / "optimizer.pt"
    size = path.stat().st_size
    path.unlink()
    path.symlink_to(path)  # a loop
    result = CliRunner().invoke(app, ["train", str(QUICKSTART), *OVERRIDES, "--out", str(run), "--resume"])
    assert size
    assert result.exit_code == 2
    assert f"{path}: cannot be read: " in result.stderr
    assert (run / "checkpoints" / "checkpoint-8").is_dir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["state"][0].update(exp_avg=torch.zeros(3)), r"parameter 0: exp_avg is \(3,\)"),
        (lambda o: o["state"][0].update(exp_avg=o["state"][0]["exp_avg"].double()), "float64"),
        (lambda o: o["state"][0].pop("step"), "no state of this optimizer, which is step, exp_avg, exp_avg_sq"),
        (lambda o: o["state"][0].update(step=torch.tensor(99.0)), "has taken 99 steps"),
        (lambda o: o["state"].update({999: o["state"][0]}), "other parameters"),
        (lambda o: o["param_groups"].pop(), "other groups"),
        (lambda o: o["param_groups"][0].update(weight_decay=7.0), "weight_decay is 7.0"),
        (lambda o: o.clear(), "no optimizer's state"),
    ],
)
def test_an_optimizer_s_state_is_checked_even_where_its_checksum_is_right(change, words, unfinished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    folder = run / "checkpoints" / "checkpoint-8"
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "optimizer.pt")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    record = {key: manifest[key] for key in ("run", "step", "processes")}
    write_manifest(folder, manifest["files"], **record)
    with pytest.raises(RunError, match=words) as caught:
        train(tiny_recipe(), run, resume=True)
    assert str(folder / "optimizer.pt") in str(caught.value)


def test_a_damaged_tokenizer_does_not_stay(unfinished, finished, tmp_path):
    run = shutil.copytree(unfinished, tmp_path / "run")
    (run / "tokenizer.json").write_text("{}")
    hears = At()
    train(tiny_recipe(), run, resume=True, reporter=hears)
    assert (run / "tokenizer.json").read_bytes() == (finished / "tokenizer.json").read_bytes()
    assert any("tokenizer.json was not the run's" in notice for notice in hears.notices)


@pytest.mark.parametrize("scrap", ["", "\0" * 400, None])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_directory_in_which_a_run_had_barely_begun(scrap, options, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.lock").touch()
    (run / ".run.json.0123456789abcdef.partial").write_text("{")
    if scrap is not None:
        (run / "run.json").write_text(scrap)
    train(tiny_recipe("train.steps=2"), run, **options)
    assert not list(run.rglob(".*"))


COMMANDS = {
    "resume": ["train", str(QUICKSTART), *OVERRIDES, "--json", "--resume", "--out"],
    "eval": ["eval", "--json"],
    "generate": ["generate", "--prompt", "def ", "--max-new-tokens", "4", "--seed", "1"],
}


def _outcome(command: str, run: Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*COMMANDS[command], str(run)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    said = result.stdout
    if command == "resume" and result.exit_code == 0:
        said = json.dumps({k: v for k, v in json.loads(said).items() if k not in MEASURED})
    if command == "eval":
        said = said.replace(str(run), "")
    return result.exit_code, said, result.stderr


@pytest.mark.parametrize("kind", ["finished", "unfinished"])
@given(data=st.data())
def test_anything_in_place_of_any_file(kind, data, finished, unfinished, other, tmp_path_factory):
    """Either the bits of the untouched run, or words that name the file, and exit code 2."""
    source = finished if kind == "finished" else unfinished
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(names))
    content = (source / name).read_bytes()
    theirs = other / name
    choices = [st.binary(max_size=300), st.just(b"")]
    if content:
        choices.append(st.integers(0, len(content) - 1).map(lambda end: content[:end]))
        choices.append(st.integers(0, len(content) - 1).map(lambda i: content[:i] + b"\xff" + content[i + 1 :]))
    if name.endswith(".json"):
        choices += [st.just(b"[" * 5000), st.just(b'{"a":' * 5000)]
    if theirs.is_file():
        choices.append(st.just(theirs.read_bytes()))
    command = data.draw(st.sampled_from(sorted(COMMANDS) if kind == "finished" else ["resume"]))
    run = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(source, run)
    (run / name).write_bytes(data.draw(st.one_of(choices)))
    code, said, words = _outcome(command, run)
    if code == 0:
        assert said == _expected(command, finished)
        if command == "resume" and kind == "unfinished":
            assert fingerprint(run) == fingerprint(finished)
    else:
        assert code == 2
        assert Path(name).name in words, words
    shutil.rmtree(run)


_known: dict[str, str] = {}


def _expected(command: str, finished: Path) -> str:
    if command not in _known:
        _known[command] = _outcome(command, finished)[1]
    return _known[command]
