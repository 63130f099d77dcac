"""Every recipe of the repository: valid, buildable, what it says it is, and run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import mixerzoo
from mixerzoo.training.run import train
from own import OWN

ROOT = Path(__file__).parents[2] / "recipes"
#: Those that a single run is made of.
RECIPES = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name != "compare")
#: METHODS of the Depth-Attention paper: size → parameters, in millions, of a vanilla decoder.
PAPER = {"360m": 361, "500m": 498, "710m": 716, "1.5b": 1344, "3b": 2748}


def _sections(path: Path) -> dict:
    """What a recipe says, with all that it inherits and every default."""
    return mixerzoo.load_recipe(path).model_dump(mode="json")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_valid_and_buildable(path):
    recipe = mixerzoo.load_recipe(path)
    decoder = mixerzoo.build(path, device="meta")
    assert decoder.mixer.name == recipe.mixer.name
    assert all(parameter.is_meta for parameter in decoder.parameters())


@pytest.mark.parametrize("mixer", OWN)
def test_one_small_recipe_a_mixer_differs_from_the_quickstart_in_the_mixer_alone(mixer):
    quickstart, small = _sections(ROOT / "quickstart.yaml"), _sections(ROOT / "small" / f"{mixer}.yaml")
    assert small.pop("mixer")["name"] == mixer
    del quickstart["mixer"]
    assert small == quickstart


def test_the_looped_recipe_differs_from_the_quickstart_in_the_loop_alone():
    quickstart, looped = _sections(ROOT / "quickstart.yaml"), _sections(ROOT / "looped" / "depth_attention-looped.yaml")
    assert looped["model"]["loop"]["count"] == 2
    looped["model"]["loop"] = quickstart["model"]["loop"]
    looped["model"]["num_layers"] = quickstart["model"]["num_layers"]
    assert looped == quickstart
    decoder = mixerzoo.build(ROOT / "looped" / "depth_attention-looped.yaml", device="meta")
    assert decoder.plan.order == (0, 1, 2, 1, 2, 3)


def test_the_quickstart_runs_depth_attention_on_the_standard_library():
    recipe = mixerzoo.load_recipe(ROOT / "quickstart.yaml")
    assert recipe.mixer.name == "depth_attention"
    assert recipe.data.source.name == "stdlib"


@pytest.mark.parametrize("size", PAPER)
@pytest.mark.parametrize("mixer", ["residual", "denseformer", "attn_res", "depth_attention"])
def test_paper_sizes(mixer, size):
    path = ROOT / "paper" / f"{mixer}-{size}.yaml"
    decoder = mixerzoo.build(path, device="meta")
    of_decoder, mixing = decoder.num_parameters()
    assert round(of_decoder / 1e6) == PAPER[size]
    assert (
        mixing
        == {
            "residual": 0,
            "depth_attention": 0,
            "denseformer": sum(range(2, decoder.shape.num_layers + 2)),
            "attn_res": 2 * decoder.shape.num_layers * (2 * decoder.shape.hidden_size + 1),
        }[mixer]
    )
    ours, baseline = _sections(path), _sections(ROOT / "paper" / f"residual-{size}.yaml")
    del ours["mixer"], baseline["mixer"]
    assert ours == baseline
    assert decoder.config.vocab_size == 50304
    data, train_section = mixerzoo.load_recipe(path).data, mixerzoo.load_recipe(path).train
    seen = train_section.steps * 1024 * 2048
    assert seen == pytest.approx(32.77e9, rel=1e-3)
    # No sequence is seen twice, the text is not read on for nothing, and what is downloaded has room.
    assert seen < data.max_tokens < 1.01 * seen
    assert 5 * data.max_tokens < data.source.max_bytes < 8 * data.max_tokens
    assert 8 * train_section.batch_size * train_section.accumulation == 1024


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in ("small", "looped", "latent") for path in (ROOT / folder).glob("*.yaml")),
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_the_small_recipes_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    recipe = mixerzoo.load_recipe(
        path,
        [
            "train.steps=3",
            "train.batch_size=2",
            "eval.interval=2",
            "eval.max_sequences=2",
            "data.source.max_bytes=200000",
        ],
    )
    assert math.isfinite(train(recipe, tmp_path / "run")["bits_per_byte"])


@pytest.mark.slow
def test_the_quickstart_ends_well_under_the_bigram_yardstick(tmp_path):
    result = train(mixerzoo.load_recipe(ROOT / "quickstart.yaml"), tmp_path / "run")
    assert result["bits_per_byte"] < 0.7 * result["bigram_bits_per_byte"]


def test_no_two_recipes_would_train_into_one_directory():
    names = [path.stem for path in RECIPES]
    assert len(set(names)) == len(names)
