"""The comparisons of recipes/compare are valid, and as large as they say."""

from __future__ import annotations

import pytest
import torch

from mixerzoo import load_checkpoint
from mixerzoo.experiments import read_comparison
from mixerzoo.recipe import build
from runs import QUICKSTART, tiny_recipe

FOLDER = QUICKSTART.parent / "compare"


@pytest.mark.parametrize("name", ["small", "gpu"])
def test_eight_mixers_at_two_sizes(name):
    found = read_comparison(FOLDER / f"{name}.yaml")
    assert len(found.contenders) == 8
    assert len(found.seeds) == 5
    assert all(len(values) >= 3 for values in found.tune.values())
    assert not set(found.seeds) & set(found.tuning_seeds)
    sizes = {}
    for variant, recipe in found.variants.items():
        if variant.label == "residual":
            sizes[recipe.model.num_layers] = sum(build(recipe, device="meta").num_parameters()) / 1e6
    if name == "gpu":
        assert [round(size) for size in sizes.values()] == [pytest.approx(25, abs=2), pytest.approx(90, abs=2)]
    assert len(sizes) == 2


def test_a_retrofit_takes_its_sizes_from_the_checkpoint(tmp_path, monkeypatch):
    from mixerzoo.training import train

    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    train(tiny_recipe("mixer={name: residual}", "train.steps=1", "data.tokenizer={name: bytes}"), tmp_path / "run")
    found = read_comparison(FOLDER / "retrofit.yaml", [f"model.init_from={tmp_path / 'run'}"])
    assert {recipe.model.hidden_size for recipe in found.variants.values()} == {32}
    assert [each.label for each in found.contenders] == ["residual", "value_residual", "denseformer", "depth_attention"]
    tokens = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        source = load_checkpoint(tmp_path / "run")(tokens)
        begins = {variant.label: build(recipe)(tokens) for variant, recipe in found.variants.items()}
    same = [label for label, logits in begins.items() if torch.equal(logits, source)]
    assert same == ["residual", "value_residual", "denseformer"]
