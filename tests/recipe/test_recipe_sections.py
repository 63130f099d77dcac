"""Keys of `train` and `data` with a form of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mixerzoo import load_recipe
from mixerzoo.errors import RecipeError
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.yaml_source import YamlSource
from recipe_text import TEXT, errors, write


@pytest.mark.parametrize(
    ("given", "read"), [("true", "layers"), ("false", "off"), ("layers", "layers"), ("whole", "whole"), ("off", "off")]
)
def test_what_is_compiled(tmp_path, given, read):
    assert load_recipe(write(tmp_path), [f"train.compile={given}"]).train.compile == read


def test_what_cannot_be_compiled(tmp_path):
    with pytest.raises(RecipeError, match="'layer' is none of layers, whole, off"):
        load_recipe(write(tmp_path), ["train.compile=layer"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("layer", ": expected one of none, layers, selective or a mapping of keys to values, got 'layer'"),
        ("{every: 0}", ".every: input should be greater than or equal to 1, got 0"),
        ("{every: 2, nth: 1}", ".nth: unknown key; known keys: every"),
    ],
)
def test_what_cannot_be_computed_again(given: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as found:
        load_recipe(write(tmp_path), [f"train.activation_checkpointing={given}"])
    assert str(found.value).endswith(f": train.activation_checkpointing{words}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "data: exactly one of source and sources says where the text comes from, and neither is given"),
        (
            "source: {name: stdlib}, sources: [{source: {name: stdlib}, weight: 1.0}],",
            "data: exactly one of source and sources says where the text comes from, and both are given; null takes "
            "one back that is inherited",
        ),
        (
            "sources: [{source: {name: stdlib}, weight: 0.7}, {source: {name: stdlib}, weight: 0.2}],",
            "data: the weights of sources must sum to 1; 0.7, 0.2 sum to 0.9",
        ),
        ("sources: [],", "data: the weights of sources must sum to 1; none of them sum to 0"),
        ("source: {name: stdlib}, sources_seed: 1,", "data: sources_seed has no meaning with one source; remove it"),
        (
            "sources: [{source: {name: stdlib, max_byte: 3}, weight: 1.0}],",
            "data.sources.0.source.max_byte: unknown key (did you mean 'max_bytes'?); known keys: max_bytes, name",
        ),
        (
            "sources: [{source: {name: stdlib}, weigth: 1.0, weight: 1.0}],",
            "data.sources.0.weigth: unknown key (did you mean 'weight'?); known keys: source, weight",
        ),
        (
            "sources: [{source: {name: stdlib}, weight: 0.0}, {source: {name: stdlib}, weight: 1.0}],",
            "data.sources.0.weight: input should be greater than 0, got 0.0",
        ),
    ],
)
def test_sources_that_cannot_be_mixed(data: str, expected: str, tmp_path: Path) -> None:
    rest = f"data: {{{data} tokenizer: {{name: bytes}}, sequence_length: 8}}"
    lines = errors(tmp_path, re.sub(r"(?m)^data:\n(?:  .*\n)+", rest + "\n", TEXT))
    assert [line.partition(": ")[2] for line in lines] == [expected]


def test_weights_need_sum_to_one_as_decimals_do(tmp_path: Path) -> None:
    thirds = ", ".join("{source: {name: stdlib}, weight: 0.3333333}" for _ in range(3))
    rest = f"data: {{sources: [{thirds}], tokenizer: {{name: bytes}}, sequence_length: 8}}\n"
    recipe = load_recipe(write(tmp_path, re.sub(r"(?m)^data:\n(?:  .*\n)+", rest, TEXT)))
    assert recipe.data.sources is not None
    assert len(recipe.data.sources) == len(recipe.data.all_sources) == 3
    assert parse_recipe(YamlSource(recipe.to_yaml(), "resolved")) == recipe
