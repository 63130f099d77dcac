"""Recipes: what they accept and what they make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mixerzoo import Recipe, build, load_recipe, load_registry, train
from mixerzoo.errors import BackendError, MixerError, RecipeError
from mixerzoo.mixer.choice import MixerChoice
from mixerzoo.recipe.feasibility import check_size
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.yaml_text import from_yaml
from own import CHOICES, OWN
from recipe_text import TEXT, edited, errors, write


def test_what_a_recipe_says_is_what_it_means(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.model.hidden_size == 16
    assert recipe.model.resolved_head_dim == 4
    assert recipe.mixer.name == "depth_attention"
    assert recipe.mixer.options.model_dump().items() >= {"stride": 2, "recent_window": 0}.items()
    assert recipe.data.tokenizer.name == "bytes"
    assert recipe.train.learning_rate == 0.001
    assert recipe.eval.batch_size == 16
    assert recipe.seed == 3


# Numbers.


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "1E-3", "+1e-3", "0.001", "1.e-3", ".1e-2", "1000e-6"])
def test_numbers_with_an_exponent_are_numbers(written: str, tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, edited(("1e-3", written)))).train.learning_rate == pytest.approx(1e-3, rel=1e-15)
    assert load_recipe(write(tmp_path), [f"train.learning_rate={written}"]).train.learning_rate == pytest.approx(1e-3)


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    (line,) = errors(tmp_path, edited(("1e-3", "'1e-3'")))
    assert line == "recipe.yaml:20: train.learning_rate: expected a number, got '1e-3'"


# Overrides.


def test_overrides_apply(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path),
        [
            "train.steps=100",
            "mixer.recent_window=1",
            "mixer.stride=null",
            "model.qk_norm=false",
            "model.loop.count=3",
            "eval={interval: 5}",
            "data.source={name: text, paths: [a.txt, b.txt]}",
            "model.k_norm=post_rope",
            "seed=4",
            "seed=5",
        ],
    )
    assert recipe.train.steps == 100
    assert recipe.mixer.options.model_dump().items() >= {"stride": None, "recent_window": 1}.items()
    assert recipe.model.qk_norm is False
    assert recipe.model.order == (0, 1, 2, 3) * 3
    assert recipe.eval.interval == 5
    assert recipe.data.source.model_dump()["paths"] == ("a.txt", "b.txt")
    assert recipe.model.k_norm == "post_rope"
    assert recipe.seed == 5
    assert load_recipe(write(tmp_path)).train.steps == 10


def test_a_whole_section_can_be_overridden(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), ["mixer={name: denseformer, dilation: 2}"])
    assert recipe.mixer.options.model_dump() == {"dilation": 2, "period": 1}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "override 'train.steps': expected key.path=value, e.g. train.steps=100"),
        ("=3", "override '=3': expected key.path=value"),
        ("train..steps=3", "override 'train..steps=3': expected key.path=value"),
        ("train.steps=[3", "override 'train.steps=[3': not valid YAML: "),
        (
            "train.steps.more=3",
            "override 'train.steps.more=3': 'steps' is not a mapping but 10; set all of it: train.steps=…",
        ),
        ("steps=3", "override 'steps=3': steps: unknown key (did you mean 'train.steps'?); known keys: "),
        ("train.steps=x", "override 'train.steps=x': train.steps: expected a whole number, got 'x'"),
        ("train.step=3", "override 'train.step=3': train.step: unknown key (did you mean 'steps'?)"),
        ("model.loop.count=0", "override 'model.loop.count=0': model.loop.count: input should be greater than"),
        ("mixer.strid=3", "override 'mixer.strid=3': mixer.strid: unknown key (did you mean 'stride'?)"),
        ("mixer.name=residul", "override 'mixer.name=residul': mixer.name: no mixer is named 'residul' (did you mean"),
        ("mixer.name=residual", "recipe.yaml:9: mixer.stride: unknown key"),
        (
            "mixer={name: denseformer, dilation: 0}",
            "override 'mixer={name: denseformer, dilation: 0}': mixer.dilation: ",
        ),
        (
            "data.source.max_byte=3",
            "override 'data.source.max_byte=3': data.source.max_byte: unknown key (did you mean 'max_bytes'?)",
        ),
        ("foo.bar=1", "override 'foo.bar=1': foo: unknown key; known keys: data, "),
        (
            "data.source.name=stdlibs",
            "override 'data.source.name=stdlibs': data.source.name: unknown name 'stdlibs' (did you mean 'stdlib'?)",
        ),
        ("data.tokenizer.vocab_size=33", "override 'data.tokenizer.vocab_size=33': data.tokenizer.vocab_size: unknown"),
        (
            "data.tokenizer={name: bpe, vocab_size: 33}",
            "override 'data.tokenizer={name: bpe, vocab_size: 33}': data.tokenizer.vocab_size: input should be greater",
        ),
        (
            "data.tokenizer={name: bpe}",
            "override 'data.tokenizer={name: bpe}': data.tokenizer: the key 'vocab_size' is",
        ),
        ("model.num_heads=3", "override 'model.num_heads=3': model: hidden_size 16 is not divisible by num_heads 3"),
        ("model.loop.prelude=4", "override 'model.loop.prelude=4': model: loop.prelude 4 + loop.coda 0 leaves no body"),
        ("train.decay_fraction=0.5", "override 'train.decay_fraction=0.5': train: decay_fraction has no meaning with"),
        (
            "eval.max_sequences=5",
            "override 'eval.max_sequences=5': eval: max_sequences has no meaning without interval: it is",
        ),
        ("mixer.name=null", "override 'mixer.name=null': mixer.name: expected text, got null"),
        ("train.steps=null", "override 'train.steps=null': train.steps: expected a whole number, got null"),
    ],
)
def test_bad_overrides(override: str, expected: str, tmp_path: Path) -> None:
    (line,) = errors(tmp_path, TEXT, [override])
    assert line.startswith(expected)


# Out again.


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    text = recipe.to_yaml()
    again = load_recipe(write(tmp_path, text))
    assert again == recipe
    assert again.to_yaml() == text
    plain = from_yaml(text)
    assert list(plain) == ["model", "mixer", "data", "train", "eval", "seed"]
    # Every default is written out.
    assert plain["mixer"].keys() == {"name", *load_registry().get("depth_attention").mixer.Config.model_fields}
    assert (plain["mixer"]["stride"], plain["mixer"]["recent_window"]) == (2, 0)
    assert plain["model"]["rope_theta"] == 10000.0
    assert plain["train"]["weight_decay"] == 0.1


@pytest.mark.parametrize("mixer", OWN)
def test_json_and_python_round_trips_of_every_mixer(mixer: str, tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), [f"mixer={json.dumps(CHOICES[mixer])}"])
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert parse_recipe(YamlSource(json.dumps(json.loads(recipe.model_dump_json())), "recipe")) == recipe
    assert Recipe.model_validate(from_yaml(recipe.to_yaml())).mixer == recipe.mixer
    assert MixerChoice.model_validate(CHOICES[mixer]) == recipe.mixer


def test_recipes_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    for part, key in ((recipe, "seed"), (recipe.train, "steps"), (recipe.mixer.options, "stride")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, key, 1)


# Building.


def test_build_takes_a_recipe_a_mapping_or_a_path(tmp_path: Path) -> None:
    file = write(tmp_path)
    built = [build(file), build(str(file)), build(load_recipe(file)), build(from_yaml(edited(("1e-3", "0.001"))))]
    first, *others = [decoder.state_dict() for decoder in built]
    assert first["model.embed_tokens.weight"].shape == (257, 16)
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in first.items())
    assert {decoder.mixer.name for decoder in built} == {"depth_attention"}


def test_build_on_the_meta_device_and_in_another_dtype(tmp_path: Path) -> None:
    decoder = build(write(tmp_path), device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in decoder.parameters())
    assert {p.dtype for p in build(write(tmp_path), dtype=torch.float64).parameters()} == {torch.float64}


def test_the_seed_is_the_recipe_s(tmp_path: Path) -> None:
    three, four = build(write(tmp_path)), build(load_recipe(write(tmp_path), ["seed=4"]))
    assert not torch.equal(three.lm_head.weight, four.lm_head.weight)


def test_the_vocabulary_is_the_tokenizer_s_unless_the_recipe_has_more(tmp_path: Path) -> None:
    assert build(write(tmp_path)).shape.vocab_size == 257
    assert build(load_recipe(write(tmp_path), ["model.vocab_size=300"])).shape.vocab_size == 300
    with pytest.raises(RecipeError, match=r"model\.vocab_size is 100, but the tokenizer has 257 tokens"):
        build(load_recipe(write(tmp_path), ["model.vocab_size=100"]))
    open_ended = load_recipe(write(tmp_path), ["data.tokenizer={name: pretrained, path: somewhere}"])
    with pytest.raises(MixerError, match=r"model\.vocab_size is not set"):
        build(open_ended)
    assert build(open_ended.with_vocab_size(41)).shape.vocab_size == 41


@pytest.mark.parametrize("function", [build, lambda recipe: train(recipe, "nowhere")], ids=["build", "train"])
@pytest.mark.parametrize("recipe", [None, 5, ["a.yaml"]], ids=str)
def test_what_is_no_recipe_at_all(function: Any, recipe: Any) -> None:
    with pytest.raises(RecipeError, match=rf"the recipe is {type(recipe).__name__}; it must be a mixerzoo\.Recipe"):
        function(recipe)


def test_a_mapping_that_is_not_a_recipe() -> None:
    with pytest.raises(RecipeError, match=r"recipe: the key 'data' is required"):
        build({"model": {}, "mixer": {"name": "residual"}, "train": {}})


def test_a_backend_that_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="'xformers' needs a CUDA device"):
        build(load_recipe(write(tmp_path), ["model.attention_backend=xformers"]))
    with pytest.raises(RecipeError, match=r"attention_backend flash has no windows, and model\.sliding_window asks"):
        load_recipe(write(tmp_path), ["model.attention_backend=flash", "model.sliding_window=8"])
    unread = "data.tokenizer={name: pretrained, path: nowhere}"
    with pytest.raises(BackendError, match="mixer 'yoco' gives them to layers"):
        check_size(load_recipe(write(tmp_path), ["model.attention_backend=flash", "mixer={name: yoco}", unread]))
