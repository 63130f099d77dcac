"""What a recipe that is wrong is told: file, line, key, and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mixerzoo import load_recipe
from mixerzoo.errors import RecipeError
from recipe_text import edited, errors


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
