"""Reading a comparison: from a file and from the command line, and what is wrong in either."""

from __future__ import annotations

import re

import pytest

from mixerzoo.errors import RecipeError, RunError
from mixerzoo.experiments import Flags, read_comparison
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell
from runs import QUICKSTART


def written(tmp_path, section: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(QUICKSTART.read_text().replace("mixer:\n  name: depth_attention\n", "") + section)
    return path


SECTION = """
compare:
  mixers:
    - residual
    - again: residual
    - {name: depth_attention, stride: 2}
  seeds: [3, 4]
  vary:
    train.batch_size: [4, 8]
  tune:
    train.learning_rate: [1.0e-3, 3.0e-3, 1.0e-2]
"""


def test_a_file_says_all(tmp_path):
    found = read_comparison(written(tmp_path, SECTION))
    assert [each.label for each in found.contenders] == ["residual", "again", "depth_attention stride=2"]
    assert found.baseline == "residual"
    assert (found.seeds, found.tuning_seeds) == ((3, 4), (1000,))
    assert len(found.variants) == 3 * 2 * 3
    assert found.size == 3 * 2 * (2 + 3)
    for variant, recipe in found.variants.items():
        assert dict(variant.setting)["train.batch_size"] == str(recipe.train.batch_size)
        assert float(dict(variant.tuned)["train.learning_rate"]) == recipe.train.learning_rate


def test_the_command_line_says_the_same_and_wins(tmp_path):
    path = written(tmp_path, SECTION)
    flags = Flags(mixers="residual, unet", seeds="2", baseline="unet", equal="flops", tune=["train.beta2=0.9,0.95"])
    found = read_comparison(path, ["compare.vary={}", "seed=7"], flags)
    assert [each.label for each in found.contenders] == ["residual", "unet"]
    assert (found.baseline, found.equal, found.seeds) == ("unet", "flops", (7, 8))
    assert set(found.tune) == {"train.learning_rate", "train.beta2"}


def test_no_two_runs_share_a_directory(tmp_path):
    found = read_comparison(written(tmp_path, SECTION))
    cells = [Cell.of(v, r, seed, steps) for v, r in found.variants.items() for seed in (3, 4) for steps in (None, 9)]
    assert len({cell.place for cell in cells}) == len(set(cells)) == len(cells)
    names = {ComparisonDirectory(tmp_path / "first").name_of(cell) for cell in cells}
    assert len(names) == len(cells)
    assert all(name.startswith("first/") for name in names)
    assert all(cell.recipe.train.steps in (400, 9) for cell in cells)


def test_runs_can_be_told_apart_whatever_their_recipes_hold():
    lists = ("data.source={name: text, paths: [a, b]}", "train.trackers=[wandb]")
    found = read_comparison(QUICKSTART, lists, Flags(mixers="{name: compose, of: [{name: residual}]}"))
    assert len({Cell.of(v, r, seed, None) for v, r in found.variants.items() for seed in (0, 1)}) == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    - residual\n", "    - residul\n", r"recipe\.yaml:\d+: compare\.mixers\.0\.name: no mixer is named"),
        ("again: residual", "residual: residual", r"recipe\.yaml:\d+: compare\.mixers\.1\.residual: .* is there twice"),
        ("stride: 2", "stide: 2", r"recipe\.yaml:\d+: compare\.mixers\.2\.stide: unknown key"),
        (
            "train.batch_size",
            "train.batch",
            r"recipe\.yaml:\d+: compare\.vary.train\.batch, value 4: train\.batch: unk",
        ),
        ("[4, 8]", "[4, x]", r"recipe\.yaml:\d+: compare\.vary.*value 'x': train\.batch_size: expected a whole number"),
        ("[4, 8]", "[4, 4]", r"recipe\.yaml:\d+: compare\.vary.*a value is there twice"),
        ("train.batch_size", "seed", "seeds are listed in compare.seeds"),
        ("train.batch_size", "mixer.name", "mixers are listed in compare.mixers"),
        ("train.batch_size", "train.learning_rate", "either varied or tuned"),
        ("train.batch_size: [4, 8]", "train: [{learning_rate: 1.0}]", r"compare\.tune.*: train is in the grid, too"),
        ("[3, 4]", "[3, 3]", "a seed is there twice"),
        ("[3, 4]", "[3, 1000]", "values are chosen on others"),
        ("[3, 4]", "none", r"recipe\.yaml:\d+: compare\.seeds: expected a whole number or a list"),
        ("  seeds", "  seed", r"recipe\.yaml:\d+: compare\.seed: unknown key \(did you mean 'seeds'"),
        ("  seeds", "  baseline: unet\n  seeds", "no mixer here is called 'unet'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old, new, words, tmp_path):
    path = written(tmp_path, SECTION.replace(old, new, 1))
    with pytest.raises(RecipeError, match=words):
        read_comparison(path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "which mixers"),
        ({"mixers": "residual,residul"}, r"--mixers 'residual,residul': compare\.mixers\.1"),
        ({"mixers": "residual, ["}, "--mixers 'residual, \\[': not valid YAML"),
        ({"mixers": "residual", "vary": ["train.steps"]}, "expected KEY=VALUE"),
        ({"mixers": "residual", "vary": ["mixer.stride=2"]}, "with the mixer residual"),
        ({"mixers": "residual", "seeds": "0"}, r"^--seeds '0': compare\.seeds: input should be .* equal to 1, got 0$"),
        ({"mixers": "residual", "tune": ["seed_=1", "seed_=2"]}, "--tune 'seed_=2': --tune 'seed_=1' names the same"),
        ({"mixers": "residual", "tune_seeds": "2"}, "--tune-seeds '2': compare.tune_seeds: nothing is tuned"),
        *(
            (
                {"mixers": "residual", "tune": [f"{key}=1,2"], "equal": equal},
                f"with equal {equal}, .* only learning_rate",
            )
            for equal in ("flops", "seconds")
            for key in ("train.steps", "train.batch_size", "model.num_layers", "data.sequence_length", "train")
        ),
        ({"mixers": "residual", "equal": "watts"}, "--equal 'watts': compare.equal"),
    ],
)
def test_wrong_options(flags, words):
    with pytest.raises(RecipeError, match=words):
        read_comparison(QUICKSTART, (), Flags(**flags))


def test_seeds_end_where_a_recipe_s_do():
    with pytest.raises(
        RecipeError, match=r"compare\.seeds.*: 3 seeds from 4294967294 on go beyond 4294967295, the last"
    ):
        read_comparison(QUICKSTART, ["seed=4294967294"], Flags(mixers="residual", seeds="3"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=5e-4", "the values of train.learning_rate are those of compare.tune; .*--tune"),
        ("train={steps: 1, learning_rate: 1.0, batch_size: 1}", "the values of train.batch_size are .*compare.vary"),
        ("mixer.stride=1", "the mixers are those of compare.mixers"),
        ("mixer={name: unet}", "the mixers are those of compare.mixers"),
        ("seed=1", "the seeds are listed in compare.seeds"),
        ("compare.seeds=[1]", "--seeds '3,4' says something else"),
    ],
)
def test_an_override_that_the_grid_would_replace_is_refused(override, words, tmp_path):
    with pytest.raises(RecipeError, match=f"override '{re.escape(override)}': {words}"):
        read_comparison(written(tmp_path, SECTION), [override], Flags(seeds="3,4"))


def test_an_override_counts_where_the_grid_leaves_the_key_to_it(tmp_path):
    # What the file says of tuning has no meaning then.
    path = written(tmp_path, SECTION + "  tune_seeds: 2\n")
    overrides = ["compare.tune={}", "train.learning_rate=5e-4", "train.weight_decay=0.5", "compare.seeds=2", "seed=7"]
    found = read_comparison(path, overrides)
    assert (found.seeds, found.tuning_seeds) == ((7, 8), ())
    assert {(each.train.learning_rate, each.train.weight_decay) for each in found.variants.values()} == {(5e-4, 0.5)}


def test_a_grid_of_ten_thousand_runs_is_refused_unless_it_is_meant():
    with pytest.raises(RunError, match=r"10,000 runs.*--yes"):
        read_comparison(QUICKSTART, (), Flags(mixers="residual", seeds="10000"))
    assert read_comparison(QUICKSTART, (), Flags(mixers="residual", seeds="10000"), most=None).size == 10000
