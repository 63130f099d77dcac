"""A run is never overwritten unasked, and nothing else ever; one that cannot begin leaves nothing."""

from __future__ import annotations

import shutil

import pytest

from mixerzoo.errors import DataError, RunError
from mixerzoo.training.checks import check_apart
from mixerzoo.training.run import train
from mixerzoo.training.trainer import complete_checkpoints
from runs import fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_run_is_never_overwritten_unasked(finished):
    before = fingerprint(finished)
    with pytest.raises(RunError, match=r"--resume.*--overwrite"):
        train(tiny_recipe(), finished)
    assert fingerprint(finished) == before


def test_overwrite_replaces_a_run_but_nothing_else(finished, tmp_path):
    directory = tmp_path / "run"
    train(tiny_recipe("train.steps=2", "train.checkpoint_interval=2"), directory)
    mine = [directory / "note.txt", directory / "checkpoints" / "notes", directory / "plots" / "checkpoint-2"]
    mine.append(directory / "tensorboard" / "layout.json")
    events = directory / "tensorboard" / "events.out.tfevents.1.host.2.0"
    for path in (*mine, events):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    beside = [tmp_path / ".run.old", tmp_path / ".run.new"]
    for path in beside:
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    train(tiny_recipe(), directory, overwrite=True)
    assert fingerprint(directory) == fingerprint(finished)
    assert [step for step, _ in complete_checkpoints(directory / "checkpoints")] == [8, 12]
    assert all(path.read_text() == "mine" for path in mine)
    assert not events.exists()
    assert all((path / "thesis.tex").exists() for path in beside)

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="does not hold a run"):
        train(tiny_recipe(), precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"

    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="not a directory"):
        train(tiny_recipe(), file, overwrite=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(RunError, match="exclude"):
        train(tiny_recipe(), tmp_path / "run", resume=True, overwrite=True)


def test_a_recipe_that_cannot_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError):
        train(tiny_recipe("data.source={name: text, paths: [nowhere.txt]}"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_of_the_user_s_own_does_not_make_a_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="does not hold a run"):
        train(tiny_recipe(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


TOKENIZER = "data.tokenizer={name: pretrained, path: %s}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model.init_from=RUN/checkpoints/checkpoint-12", TOKENIZER % "APART"), r"model\.init_from .*-12 lies"),
        (("model.init_from=RUN", TOKENIZER % "APART"), r"model\.init_from .*run lies"),
        ((TOKENIZER % "RUN/tokenizer.json",), r"data\.tokenizer\.path .*tokenizer\.json lies"),
        (("data.source={name: text, paths: [RUN/**/*.md]}",), r"data\.source .*run lies"),
        (("data.source={name: hf, path: json, data_files: {train: RUN/run.json}}",), r"data\.source .*run\.json lies"),
        (
            (
                "data.source=null",
                "data.sources=[{source: {name: stdlib}, weight: 0.5}, "
                "{source: {name: text, paths: [a.txt], validation_paths: [RUN/README.md]}, weight: 0.5}]",
            ),
            r"data\.sources\.1\.source .*README\.md lies",
        ),
    ],
)
def test_what_a_run_is_to_be_made_of_is_not_replaced_by_it(overrides, words, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    recipe = tiny_recipe(*(each.replace("RUN", str(run)).replace("APART", str(finished)) for each in overrides))
    with pytest.raises(RunError, match=f"{words} in .*--overwrite would replace; copy it elsewhere"):
        train(recipe, run, overwrite=True)
    assert fingerprint(run) == fingerprint(finished)
    assert [step for step, _ in complete_checkpoints(run / "checkpoints")] == [8, 12]


def test_the_recipe_of_a_run_is_not_replaced_and_what_lies_around_it_may_be_text(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(RunError, match=r"the recipe .*recipe\.yaml lies in"):
        train(run / "recipe.yaml", run, overwrite=True)
    assert fingerprint(run) == fingerprint(finished)
    check_apart(tiny_recipe(f"data.source={{name: text, paths: [{tmp_path}/**/*.md]}}"), run)
