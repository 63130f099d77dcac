"""Going on: with the same recipe, and for more steps."""

from __future__ import annotations

import json

import pytest

from mixerzoo.errors import RunError
from mixerzoo.runs.checkpoints import complete_checkpoints, prune
from mixerzoo.runs.directory import RunDirectory
from mixerzoo.runs.records import BATCH
from mixerzoo.training.run import train
from reporters import At
from runs import fingerprint, tiny_recipe

CONSTANT = ("train.schedule=constant", "train.warmup_fraction=0")


pytestmark = pytest.mark.usefixtures("own_cache")


# The same recipe.


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    result = train(tiny_recipe(), finished, resume=True)
    assert result == json.loads((finished / "result.json").read_text())
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_resume_with_another_recipe_is_refused_and_names_the_keys(finished):
    with pytest.raises(RunError, match=r"train\.learning_rate: was 0\.003, now 0\.1"):
        train(tiny_recipe("train.learning_rate=0.1"), finished, resume=True)
    with pytest.raises(RunError, match=r"mixer\.name: was depth_attention, now residual"):
        train(tiny_recipe("mixer={name: residual}"), finished, resume=True)


def test_resume_with_other_data_is_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("recipe.yaml", "run.json"):
        (copy / name).write_text((finished / name).read_text())
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(run | {"data_fingerprint": "0"}))
    with pytest.raises(RunError, match="data changed"):
        train(tiny_recipe(), copy, resume=True)


# More steps.


@pytest.mark.parametrize("short", [7, 9])
def test_a_finished_run_goes_on_as_if_it_had_been_longer(short, tmp_path):
    recipe = (*CONSTANT, "eval.interval=3")
    train(tiny_recipe(*recipe, f"train.steps={short}"), tmp_path / "run")
    hears = At()
    train(tiny_recipe(*recipe), tmp_path / "run", resume=True, reporter=hears)
    assert hears.first_step == short
    train(tiny_recipe(*recipe), tmp_path / "long")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "long")
    assert RunDirectory(tmp_path / "run").recipe().train.steps == 12
    assert not list(tmp_path.rglob(".*"))


def test_a_longer_run_must_have_had_the_same_rates(finished, tmp_path):
    before = fingerprint(finished)
    with pytest.raises(RunError, match=r"cannot go on to train\.steps=20: .* the schedule 'cosine' ends with the run"):
        train(tiny_recipe("train.steps=20"), finished, resume=True)
    assert fingerprint(finished) == before
    warm = ("train.schedule=constant", "train.warmup_fraction=0.5")
    train(tiny_recipe(*warm, "train.steps=4"), tmp_path / "run")
    with pytest.raises(RunError, match=r"set train\.warmup_fraction=0\.25,") as caught:
        train(tiny_recipe(*warm, "train.steps=8"), tmp_path / "run", resume=True)
    assert "step 2 at a learning rate of 0.0015" in str(caught.value)
    right = tiny_recipe("train.schedule=constant", "train.warmup_fraction=0.25", "train.steps=8")
    train(right, tmp_path / "run", resume=True)
    train(right, tmp_path / "long")
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "long")
    with pytest.raises(RunError, match=r"(?s)train\.steps: was 8, now 4.*can only grow"):
        train(
            tiny_recipe("train.schedule=constant", "train.warmup_fraction=0.25", "train.steps=4"),
            tmp_path / "run",
            resume=True,
        )


@pytest.mark.parametrize("free", [(), BATCH])
def test_more_steps_and_another_batch_at_once(free, finished):
    recipe = tiny_recipe("train.steps=20", "train.batch_size=2", "train.accumulation=4")
    with pytest.raises(RunError, match=r"(?s)accumulation: was 2, now 4.*nothing else differs") as caught:
        RunDirectory(finished).check_same(recipe, "", free)
    assert "grow" not in str(caught.value)


def test_what_a_finished_run_keeps(finished, tmp_path):
    older, newest = (folder for _, folder in complete_checkpoints(finished / "checkpoints"))
    assert not (older / "optimizer.pt").exists()
    assert (newest / "optimizer.pt").exists()
    none = (*CONSTANT, "train.steps=4", "train.keep_checkpoints=0")
    train(tiny_recipe(*none), tmp_path / "run")
    assert complete_checkpoints(tmp_path / "run" / "checkpoints") == []
    with pytest.raises(RunError, match=r"no checkpoint left to go on from \(train\.keep_checkpoints: 0\)"):
        train(tiny_recipe(*none, "train.steps=8"), tmp_path / "run", resume=True)


@pytest.mark.parametrize("keep", range(5))
def test_the_newest_are_kept(keep, tmp_path):
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    prune(tmp_path, keep)
    assert [step for step, _ in complete_checkpoints(tmp_path)] == [4, 8, 12][max(0, 3 - keep) :]
