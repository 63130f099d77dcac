"""Recipes: what they accept, what they make of it, and what they say about everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixerzoo import Recipe, build, load_recipe, load_registry, train
from mixerzoo.errors import BackendError, MixerError, RecipeError
from mixerzoo.mixer.choice import MixerChoice
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.schema import json_schema
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.yaml_text import from_yaml
from own import CHOICES, OWN

TEXT = """\
model:
  hidden_size: 16
  intermediate_size: 24
  num_layers: 4
  num_heads: 4
  num_kv_heads: 2
mixer:
  name: depth_attention
  stride: 2
data:
  source:
    name: stdlib
    max_bytes: 1000
  tokenizer:
    name: bytes
  sequence_length: 8
train:
  steps: 10
  batch_size: 2
  learning_rate: 1e-3
seed: 3
"""


def edited(*edits: tuple[str, str]) -> str:
    """`TEXT` with each first part, which must be there, replaced by the second."""
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return text


def write(path: Path, text: str = TEXT) -> Path:
    file = path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def errors(path: Path, text: str = TEXT, overrides: list[str] | None = None) -> list[str]:
    """The lines of the error that a recipe gives, without the file's folder."""
    file = write(path, text)
    with pytest.raises(RecipeError) as failure:
        load_recipe(file, overrides or [])
    return str(failure.value).replace(f"{file}", "recipe.yaml").splitlines()


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


# Errors: file, line, key, and what would be right.


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # Names.
        (
            "name: depth_attention",
            "name: depth_atention",
            "8: mixer.name: no mixer is named 'depth_atention' (did you mean 'depth_attention'?); known: ",
        ),
        ("  name: depth_attention\n", "", "7: mixer: the key 'name' is required"),
        ("name: depth_attention", "name: 3", "8: mixer.name: expected text, got 3"),
        (
            "name: stdlib",
            "name: stdlb",
            "12: data.source.name: unknown name 'stdlb' (did you mean 'stdlib'?); known: stdlib, text, hf",
        ),
        (
            "name: bytes",
            "name: byte",
            "15: data.tokenizer.name: unknown name 'byte' (did you mean 'bytes'?); known: bytes, bpe, pretrained",
        ),
        ("    name: stdlib\n", "", "11: data.source: the key 'name' is required"),
        # Unknown keys, at each level.
        (
            "seed: 3",
            "sed: 3",
            "21: sed: unknown key (did you mean 'seed'?); known keys: data, eval, mixer, model, ",
        ),
        (
            "hidden_size: 16",
            "hidden_size: 16\n  hiden_size: 16",
            "3: model.hiden_size: unknown key (did you mean 'hidden_size'?); known keys: ",
        ),
        (
            "num_layers: 4",
            "num_layers: 4\n  loop: {cuont: 2}",
            "5: model.loop.cuont: unknown key (did you mean 'count'?); known keys: coda, count, prelude",
        ),
        (
            "  name: depth_attention\n",
            "  name: residual\n",
            "9: mixer.stride: unknown key; known keys: none (of mixer 'residual'; to choose another mixer, replace ",
        ),
        (
            "stride: 2",
            "strid: 2",
            "9: mixer.strid: unknown key (did you mean 'stride'?); known keys: ",
        ),
        (
            "max_bytes: 1000",
            "max_byte: 1000",
            "13: data.source.max_byte: unknown key (did you mean 'max_bytes'?); known keys: max_bytes, name",
        ),
        (
            "name: bytes",
            "name: bytes\n    vocab: 3",
            "16: data.tokenizer.vocab: unknown key; known keys: name",
        ),
        (
            "sequence_length: 8",
            "sequence_length: 8\n  sequence_lenght: 8",
            "17: data.sequence_lenght: unknown key (did you mean 'sequence_length'?); known keys: ",
        ),
        (
            "batch_size: 2",
            "batch_size: 2\n  batchsize: 2",
            "20: train.batchsize: unknown key (did you mean 'batch_size'?); known keys: ",
        ),
        ("seed: 3", "eval: {intervall: 3}", "21: eval.intervall: unknown key (did you mean 'interval'?); known keys: "),
        # Keys that are missing.
        ("  hidden_size: 16\n", "", "1: model: the key 'hidden_size' is required"),
        ("  steps: 10\n", "", "17: train: the key 'steps' is required"),
        # Values of the wrong kind.
        ("num_layers: 4", "num_layers: four", "4: model.num_layers: expected a whole number, got 'four'"),
        ("num_layers: 4", "num_layers: 4.5", "4: model.num_layers: expected a whole number, got 4.5"),
        ("num_layers: 4", "num_layers: true", "4: model.num_layers: expected a whole number, got true"),
        ("num_layers: 4", "num_layers: '4'", "4: model.num_layers: expected a whole number, got '4'"),
        ("num_layers: 4", "num_layers: 0", "4: model.num_layers: input should be greater than or equal to 1, got 0"),
        ("num_layers: 4", "num_layers:", "4: model.num_layers: expected a whole number, got null"),
        ("num_layers: 4", "num_layers: 4\n  qk_norm: 1", "5: model.qk_norm: expected true or false, got 1"),
        (
            "num_layers: 4",
            "num_layers: 4\n  k_norm: pre",
            "5: model.k_norm: 'pre' is none of pre_rope, post_rope (did you mean 'pre_rope'?)",
        ),
        (
            "num_layers: 4",
            "num_layers: 4\n  attention_backend: spda",
            "5: model.attention_backend: 'spda' is none of sdpa, eager, flex, flash, xformers (did you mean 'sdpa'?)",
        ),
        ("learning_rate: 1e-3", "learning_rate: fast", "20: train.learning_rate: expected a number, got 'fast'"),
        ("learning_rate: 1e-3", "learning_rate: 0", "20: train.learning_rate: input should be greater than 0, got 0"),
        ("1e-3", ".inf", "20: train.learning_rate: input should be a finite number, got .inf"),
        ("1e-3", ".nan", "20: train.learning_rate: input should be a finite number, got .nan"),
        ("num_layers: 4", "rope_theta: .inf\n  num_layers: 4", "4: model.rope_theta: input should be a finite number"),
        (
            "name: stdlib\n    max_bytes: 1000",
            "name: text\n    paths: []",
            "13: data.source.paths: expected a list of length 1 or more, got []",
        ),
        (
            "name: stdlib\n    max_bytes: 1000",
            "{name: hf, path: x, data_files: 3}",
            "12: data.source.data_files: expected text or a list or a mapping of keys to values, got 3",
        ),
        (
            "name: stdlib\n    max_bytes: 1000",
            "name: hf\n    path: x\n    data_files: {train: 3}",
            "14: data.source.data_files.train: expected text or a list, got 3",
        ),
        ("name: bytes", "name: bpe", "14: data.tokenizer: the key 'vocab_size' is required"),
        ("stride: 2", "stride: 0", "9: mixer.stride: input should be greater than or equal to 1, got 0"),
        ("stride: 2", "stride: two", "9: mixer.stride: expected a whole number, got 'two'"),
        ("max_bytes: 1000", "max_bytes: many", "13: data.source.max_bytes: expected a whole number, got 'many'"),
        ("seed: 3", "seed: -1", "21: seed: input should be greater than or equal to 0, got -1"),
        ("seed: 3", "seed: 4294967296", "21: seed: input should be less than 4294967296, got 4294967296"),
        ("seed: 3", "eval: 3", "21: eval: expected a mapping of keys to values, got 3"),
        ("  name: depth_attention\n  stride: 2\n", "  laurel\n", "7: mixer: expected a mapping, got 'laurel'; write {"),
        (
            "  name: depth_attention\n  stride: 2\n",
            "  - residual\n",
            "7: mixer: expected a mapping of keys to values, got ",
        ),
        # Values that do not go together.
        ("num_kv_heads: 2", "num_kv_heads: 3", "5: model: num_heads 4 is not divisible by num_kv_heads 3"),
        (
            "hidden_size: 16",
            "hidden_size: 18",
            "2: model: hidden_size 18 is not divisible by num_heads 4; set head_dim",
        ),
        ("num_kv_heads: 2", "head_dim: 5", "6: model: head_dim 5 is odd; RoPE rotates pairs"),
        (
            "num_kv_heads: 2",
            "loop: {prelude: 2, coda: 2, count: 2}",
            "6: model: loop.prelude 2 + loop.coda 2 leaves no body in 4 layers",
        ),
        ("seed: 3", "  decay_fraction: 0.5", "21: train: decay_fraction has no meaning with schedule cosine; "),
        (
            "seed: 3",
            "  schedule: constant\n  final_learning_rate_fraction: 0.5",
            "22: train: final_learning_rate_fraction has no meaning with schedule constant; remove it",
        ),
        (
            "seed: 3",
            "  schedule: wsd\n  decay_fraction: 0.9\n  warmup_fraction: 0.2",
            "23: train: warmup_fraction 0.2 and decay_fraction 0.9 are more than the whole run",
        ),
        # YAML.
        ("num_layers: 4", "num_layers: 4\n  num_layers: 5", "5: not valid YAML: the key 'num_layers' appears twice"),
        ("stride: 2", "stride: 2\n  stride: 2", "10: not valid YAML: the key 'stride' appears twice"),
        ("stride: 2", "stride: [2", "10: not valid YAML: "),
        ("model:\n", "model: 3\n", "2: not valid YAML: "),
    ],
)
def test_errors_name_file_line_and_key(old: str, new: str, expected: str, tmp_path: Path) -> None:
    (line,) = errors(tmp_path, edited((old, new)))
    assert line.startswith(f"recipe.yaml:{expected}")


def test_a_misspelt_key_that_is_required_is_two_problems(tmp_path: Path) -> None:
    assert sorted(line.split(";")[0] for line in errors(tmp_path, edited(("sequence_length", "sequence_lenght")))) == [
        "recipe.yaml:10: data: the key 'sequence_length' is required",
        "recipe.yaml:16: data.sequence_lenght: unknown key (did you mean 'sequence_length'?)",
    ]


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        edited(("stride: 2", "strid: 2"), ("num_layers: 4", "num_layers: 0"), ("batch_size: 2", "batch_size: x")),
    )
    places = [line.split(": ")[:2] for line in found]
    assert sorted(places) == [
        ["recipe.yaml:19", "train.batch_size"],
        ["recipe.yaml:4", "model.num_layers"],
        ["recipe.yaml:9", "mixer.strid"],
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "3", "null"])
def test_what_is_not_a_mapping(text: str, tmp_path: Path) -> None:
    (line,) = errors(tmp_path, text)
    assert line.startswith("recipe.yaml:1: expected a mapping of keys to values, got ")


@pytest.mark.parametrize("text", ["a: b: c", "{", "a: *nowhere", "a: !!python/object:os.system {}", "\tb: 1"])
def test_what_is_not_safe_yaml(text: str, tmp_path: Path) -> None:
    (line,) = errors(tmp_path, text)
    assert re.match(r"recipe\.yaml:\d+: not valid YAML: .+", line)


@pytest.mark.parametrize("text", ["[1, 2]: 3", "{a: 1}: 3", "? [a]\n: 1"])
def test_keys_that_cannot_be(text: str, tmp_path: Path) -> None:
    (line,) = errors(tmp_path, text)
    assert line.startswith("recipe.yaml:1: ")


@pytest.mark.parametrize("key", ["3", "null", "true", "2024-01-01"])
def test_keys_that_are_not_text(key: str, tmp_path: Path) -> None:
    lines = errors(tmp_path, edited(("seed: 3", f"{key}: 3")))
    assert lines
    assert all(line.startswith("recipe.yaml:21: ") for line in lines)


@pytest.mark.parametrize("key", ["3", "null", "true"])
def test_mixer_options_whose_keys_are_not_text(key: str, tmp_path: Path) -> None:
    lines = errors(tmp_path, edited(("stride: 2", f"{key}: 3")))
    assert lines
    assert all(line.startswith("recipe.yaml:9: ") for line in lines)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "residual-long.yaml").touch()
    with pytest.raises(RecipeError, match=r"no such file \(did you mean '.*residual-long\.yaml'\?\)$"):
        load_recipe(tmp_path / "resdual-long.yaml")
    with pytest.raises(RecipeError, match="is a directory, not a recipe file"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("seed: ä".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml:1: not UTF-8 text: the byte 0xe4"):
        load_recipe(tmp_path / "latin.yaml")


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


# The JSON schema.


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a schema."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from schemas_in(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from schemas_in(value)


def test_json_schema() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["if"] == {"not": {"required": ["base"]}}
    assert schema["then"]["required"] == ["model", "mixer", "data", "train"]
    assert "steps" in schema["then"]["properties"]["train"]["required"]
    assert schema["additionalProperties"] is False
    for part in schemas_in(schema):
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        if part.get("type") == "object" and "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part.get("required", [])) <= set(part["properties"])
    choices = {choice["properties"]["name"]["const"]: choice for choice in schema["$defs"]["MixerChoice"]["oneOf"]}
    assert choices.keys() == load_registry().entries.keys()
    for name, entry in load_registry().entries.items():
        assert set(choices[name]["properties"]) == {"name", *entry.mixer.Config.model_fields}
        assert "name" in choices[name]["required"]


def test_every_option_is_described() -> None:
    schema = json_schema()
    objects = [part for part in schemas_in(schema) if part.get("type") == "object" and "properties" in part]
    assert len(objects) > 8
    for part in objects:
        for name, option in part["properties"].items():
            assert option.get("description"), f"{part.get('title')}.{name}"


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


# Several sources.


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
