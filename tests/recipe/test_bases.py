"""What a recipe inherits, where its keys stand then, and the recipes that are at hand by name."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.errors import RecipeError
from mixerzoo.recipe import YamlSource, find_recipe, parse_recipe, recipes_at_hand
from mixerzoo.recipe.merging import merged
from mixerzoo.recipe.recipe import EvalConfig

ROOT = Path(__file__).parents[2]


def _write(folder: Path, **texts: str) -> Path:
    """Recipe files; returns the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def _message(path: Path | str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        mixerzoo.load_recipe(path, overrides)
    return str(caught.value)


def test_own_keys_lie_on_top_of_those_of_a_name(tmp_path):
    path = _write(tmp_path, mine="base: quickstart\ntrain:\n  steps: 7\nmixer:\n  stride: 2\n")
    ours, theirs = mixerzoo.load_recipe(path), mixerzoo.load_recipe(ROOT / "recipes" / "quickstart.yaml")
    assert (ours.train.steps, ours.mixer.options.stride) == (7, 2)
    assert ours.train.batch_size == theirs.train.batch_size
    assert (ours.model, ours.data, ours.eval) == (theirs.model, theirs.data, theirs.eval)
    assert mixerzoo.load_recipe(path, ["train.steps=9"]).train.steps == 9
    assert mixerzoo.load_recipe(ours_again(tmp_path, ours)) == ours


def ours_again(folder: Path, recipe: mixerzoo.Recipe) -> Path:
    return _write(folder, resolved=recipe.to_yaml())


def test_a_path_is_relative_to_the_file_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    _write(tmp_path, one="base: quickstart\nseed: 5\n")
    path = _write(tmp_path / "deep", two="base: ../one.yaml\nmodel: {num_layers: 4}\n")
    monkeypatch.chdir(tmp_path / "deep")
    assert mixerzoo.load_recipe(path) == mixerzoo.load_recipe("two.yaml")
    assert mixerzoo.load_recipe("two.yaml").seed == 5
    assert mixerzoo.load_recipe("two.yaml").model.num_layers == 4


def test_what_names_another_kind_replaces_and_null_takes_back(tmp_path):
    path = _write(
        tmp_path,
        two="base: one.yaml\nmixer: {name: residual}\nmodel: {num_kv_heads: null}\n"
        "data: {source: {name: text, paths: [a]}}\n",
        one="base: quickstart\nmixer: {stride: 2}\ndata: {source: {max_bytes: 9000}}\n",
    )
    recipe = mixerzoo.load_recipe(path)
    assert recipe.mixer.name == "residual"
    assert recipe.model.num_kv_heads is None
    assert recipe.data.source.model_dump(mode="json")["paths"] == ["a"]
    # Lists are replaced whole.
    assert mixerzoo.load_recipe(path, ["data.source.paths=[b]"]).data.source.paths == ("b",)


def test_null_gives_a_key_back_to_its_default(tmp_path):
    _write(
        tmp_path,
        three="base: two.yaml\n",
        two="base: one.yaml\n"
        "model: {loop: null, sliding_window: null}\n"
        "mixer: {recent_window: null}\n"
        "data: {sources: null, sources_seed: null, source: {name: stdlib}, validation_fraction: null}\n"
        "train: {schedule: null, decay_fraction: null, groups: null, optimizer: {beta1: null}}\n"
        "eval: null\n"
        "compare: {seeds: null}\n",
        one="base: quickstart\n"
        "model: {loop: {count: 2}, sliding_window: 64}\n"
        "mixer: {recent_window: 1}\n"
        "data:\n"
        "  source: null\n"
        "  sources: [{source: {name: stdlib}, weight: 0.5}, {source: {name: text, paths: [a]}, weight: 0.5}]\n"
        "  sources_seed: 3\n"
        "  validation_fraction: 0.1\n"
        "train:\n"
        "  schedule: wsd\n"
        "  decay_fraction: 0.4\n"
        "  groups: {mixer: {learning_rate_factor: 2.0}}\n"
        "  optimizer: {name: lion, beta1: 0.8}\n"
        "compare: {mixers: [residual], seeds: 5}\n",
    )
    for each in ("two", "three"):
        source = YamlSource.read(tmp_path / f"{each}.yaml")
        assert source.data["model"]["sliding_window"] is None  # where a checkpoint has another
        assert source.take("compare") == {"mixers": ["residual"]}
        recipe, plain = parse_recipe(source), mixerzoo.load_recipe("quickstart", ["train.optimizer=lion"])
        assert recipe == plain.model_copy(update={"eval": EvalConfig()}), each
    source = YamlSource.read(_write(tmp_path, four="base: one.yaml\ntrain: {schedule: null}\n"))
    source.take("compare")
    with pytest.raises(RecipeError, match=r"one\.yaml:11: train: decay_fraction has no meaning with schedule cosine"):
        parse_recipe(source)


def test_null_is_a_value_of_a_key_that_may_be_null():
    class Options(BaseModel):
        share: float | None = 0.5
        either: Any = 1
        size: int = 3

    given = {"share": 0.1, "either": 2, "size": 4, "not_a_key": 5}
    assert merged(given, dict.fromkeys(given), [Options]) == {"share": None, "either": None}
    assert merged({}, {"size": None}, [Options]) == {"size": None}


def test_a_null_that_gives_nothing_back_is_told_with_its_place(tmp_path):
    path = _write(tmp_path, mine="base: quickstart\ntrain:\n  decay_fractoin: null\n")
    assert f"{path}:3: train.decay_fractoin: unknown key (did you mean 'decay_fraction'?)" in _message(path)
    path = _write(tmp_path, mine="base: quickstart\ntrain:\n  steps: null\n")
    assert f"{path}:2: train: the key 'steps' is required" in _message(path)
    path = _write(tmp_path, mine="base: quickstart\ntrain:\n  decay_fraction: null\n")
    assert f"{path}:3: train.decay_fraction: expected a number, got null" in _message(path)


def test_errors_name_the_file_in_which_the_wrong_key_stands(tmp_path):
    path = _write(
        tmp_path,
        two="base: one.yaml\ntrain:\n  batch_size: 0\n",
        one="# first\nbase: quickstart\ntrain:\n  stps: 4\n  steps: 0\nmixer: {strid: 2}\n",
    )
    message = _message(path)
    assert f"{tmp_path / 'one.yaml'}:4: train.stps: unknown key (did you mean 'steps'?)" in message
    assert f"{tmp_path / 'one.yaml'}:5: train.steps" in message
    assert f"{tmp_path / 'one.yaml'}:6: mixer.strid" in message
    assert f"{path}:3: train.batch_size" in message
    assert "override 'train.steps=-1': train.steps" in _message(path, "train.steps=-1")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a": "seed: 1\nbase: a.yaml\n"}, "a.yaml:2: base: a recipe cannot inherit from itself"),
        ({"a": "base: b.yaml\n", "b": "base: c.yaml\n", "c": "base: b.yaml\n"}, "c.yaml:1: base: a recipe cannot"),
        ({"a": "base: quickstrt\n"}, "no such file (did you mean"),
        ({"a": "base: [quickstart]\n"}, "a.yaml:1: base: expected the path or the name of a recipe"),
        ({"a": "base: b.yaml\n", "b": "train: {\n"}, "b.yaml:2: not valid YAML"),
        ({"a": "base: .\n"}, "is a directory"),
        ({f"n{i}": f"base: n{i + 1}.yaml\n" for i in range(40)}, "more than 16 recipes inherit"),
    ],
)
def test_bases_that_cannot_be(tmp_path, texts, said):
    message = _message(_write(tmp_path, **texts))
    assert said in message
    assert "Traceback" not in message


def test_a_mapping_inherits_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert YamlSource.of({"base": "quickstart", "seed": 3}, "recipe").data["seed"] == 3
    decoder = mixerzoo.build({"base": "quickstart", "model": {"num_layers": 2}}, device="meta")
    assert decoder.shape.num_layers == 2


def test_a_name_works_where_a_path_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder of that name is no recipe
    named = CliRunner().invoke(app, ["describe", "quickstart", "--json"])
    path = CliRunner().invoke(app, ["describe", str(ROOT / "recipes" / "quickstart.yaml"), "--json"])
    assert {**json.loads(named.stdout), "recipe": ""} == {**json.loads(path.stdout), "recipe": ""}
    assert "(did you mean 'quickstart'?)" in _message("quickstar")
    # A dot in a name begins no suffix.
    assert "(did you mean 'denseformer-1.5b'?)" in _message("denseformer-1.6b")
    assert find_recipe("denseformer-1.5b").stem == "denseformer-1.5b"
    _write(tmp_path, ours="base: quickstart\nseed: 8\n").rename(tmp_path / "residual")
    assert mixerzoo.load_recipe("residual").seed == 8  # a file that is there wins


def test_the_command_lists_shows_and_copies(tmp_path):
    run = CliRunner().invoke
    listed = {each["name"]: each["summary"] for each in json.loads(run(app, ["recipes", "--json"]).stdout)}
    assert listed.keys() == recipes_at_hand().keys() == {path.stem for path in (ROOT / "recipes").rglob("*.yaml")}
    assert all(listed.values())
    assert listed["quickstart"].startswith("Depth-Attention on the Python standard library")
    assert "denseformer-3b" in run(app, ["recipes"]).stdout
    assert run(app, ["recipes", "quickstart"]).stdout == (ROOT / "recipes" / "quickstart.yaml").read_text()
    assert run(app, ["recipes", "mudd", "--copy", str(tmp_path / "new")]).exit_code == 0
    copied = tmp_path / "new" / "mudd.yaml"
    assert mixerzoo.load_recipe(copied) == mixerzoo.load_recipe("mudd")
    copied.write_text("mine")
    for arguments in (["mudd", "--copy", str(tmp_path / "new")], ["muddd"], ["--copy", str(tmp_path)]):
        result = run(app, ["recipes", *arguments])
        assert result.exit_code == 2, arguments
    assert copied.read_text() == "mine"


def test_a_wheel_holds_the_recipes(tmp_path):
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.removeprefix("mixerzoo/") for name in archive.namelist() if name.startswith("mixerzoo/recipes/")}
    assert inside == {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
