"""Malformed recipes end in words, soon, and without much memory."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from malformed_recipes import RECIPE, malformed
from mixerzoo.cli import app
from mixerzoo.errors import RecipeError
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.yaml_text import MAX_NODES, TextError, compose, from_yaml, one_line, to_yaml


def refused(path: Path, content: bytes) -> str:
    """What `mixerzoo describe` says of a recipe that it must refuse, in this process."""
    path.write_bytes(content)
    result = CliRunner().invoke(app, ["describe", str(path)])
    assert result.exit_code == 2, (result.exception, result.output[-500:])
    assert result.stdout == ""
    assert len(result.stderr) < 60_000
    first = result.stderr.removeprefix("Error:").split()[0]
    assert re.match(rf"{re.escape(str(path))}:\d+:?$", first), result.stderr[:500]
    return result.stderr


@pytest.mark.parametrize("number", range(24))
def test_each_kind(number: int, tmp_path: Path) -> None:
    *_, case = malformed(number + 1, seed=1)
    began = time.process_time()
    refused(tmp_path / "r.yaml", case.content)
    assert time.process_time() - began < 10, case.kind


LIMITED = """
import resource, sys
import torch
from typer.testing import CliRunner
from mixerzoo.cli import app
run = CliRunner().invoke
run(app, ["describe", sys.argv[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    result = run(app, ["describe", path])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(result.exit_code, f"{path}:" in result.stderr, grown, path, flush=True)
"""


@pytest.mark.slow
def test_two_hundred(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(RECIPE)
    paths = []
    for number, case in enumerate(malformed(200)):
        paths.append(tmp_path / f"{number:03}-{case.kind.replace(' ', '-')}.yaml")
        paths[-1].write_bytes(case.content)
    began = time.monotonic()
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "good.yaml"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200 * 20)
    lines = done.stdout.splitlines()
    assert len(lines) == 200
    assert [line for line in lines if not line.startswith("2 True ")] == []
    assert max(int(line.split()[2]) for line in lines) < 1024
    assert time.monotonic() - began < 200 * 10


@settings(max_examples=200)
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text("{}[]:,-&*!|>'\"%@`#?\n a1\t<~.", max_size=60))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    with suppress(TextError):
        compose(text).construct()
    with pytest.raises(RecipeError, match=r"^r\.yaml:\d+: "):
        parse_recipe(YamlSource(text, "r.yaml"))
    with pytest.raises(RecipeError, match=r"^(override|r\.yaml:)"):
        parse_recipe(YamlSource(RECIPE, "r.yaml", [f"train.steps={text}", "model.num_layers=x"]))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
    | st.sampled_from(
        ["yes", "No", "on", "y", "1_000", "0o17", "0x1F", "010", "2024-01-01", "12:30", "~", "1e3", "<<"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab<: -#", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(plain)
def test_what_is_written_is_read_back(value: object) -> None:
    assert from_yaml(to_yaml(value)) == value
    line = one_line(value)
    assert "\n" not in line
    assert from_yaml(line) == value


def test_words_mean_what_the_core_schema_of_yaml_1_2_says() -> None:
    words = {
        "0o17": 15, "0x1F": 31, "010": 10, "-7": -7, "+7": 7, "1_000": "1_000", "0b11": "0b11",
        "1e-3": 1e-3, ".5": 0.5, "5.": 5.0, "1.5": 1.5, "12:30:45": "12:30:45",
        "true": True, "FALSE": False, "yes": "yes", "No": "No", "on": "on", "off": "off", "y": "y",
        "null": None, "~": None, "": None, "'1'": "1", '"true"': "true", "!!str 1": "1", "!!int 3": 3,
    }  # fmt: skip
    for word, value in words.items():
        found = from_yaml(word)
        assert (found, type(found)) == (value, type(value)), word


def test_merge_keys_mean_what_is_written_out() -> None:
    text = """
base: &base {a: 1, b: 2}
own: {<<: *base, b: 3}
several: {b: 4, <<: [{a: 5}, *base, {c: 6}]}
quoted: {'<<': 1}
"""
    assert from_yaml(text) == {
        "base": {"a": 1, "b": 2},
        "own": {"a": 1, "b": 3},
        "several": {"a": 5, "b": 4, "c": 6},
        "quoted": {"<<": 1},
    }


@pytest.mark.parametrize("tag", ["!" * 1_000_000, "!" + "a" * 1_000_000, "[" + "!" * 1_000_000, "a: !<" + "b" * 300])
def test_a_tag_without_end_is_refused_before_it_is_scanned(tag: str) -> None:
    began = time.process_time()
    with pytest.raises(TextError, match="a '!' with more than 200 characters") as caught:
        compose(f"a: 1\n{tag}")
    assert caught.value.line == 2
    assert time.process_time() - began < 1


def test_long_text_may_have_exclamation_marks() -> None:
    long = "word! " * 100 + "w!" * 1000
    for text in (long, f"'{long}'", f'"{long}"', f"|\n  {long}\n"):
        assert from_yaml(f"a: {text}")["a"].strip() == long


@pytest.mark.parametrize("item", ["- <<: *a", "- *a", "- b: {<<: *a}"])
def test_merges_are_built_within_the_bound(item: str) -> None:
    keys = "".join(f"  k{number}: 1\n" for number in range(5000))
    tracemalloc.start()
    with pytest.raises(TextError, match="with the aliases written out"):
        compose(f"a: &a\n{keys}b:\n" + f"{item}\n" * 3300)
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


def test_an_override_of_an_alias_changes_one_place_alone() -> None:
    text = RECIPE.replace("eval: {batch_size: 4}", "eval: &e {batch_size: 4}").replace("seed: 3", "seed: 3\nmore: *e")
    source = YamlSource(text, "r.yaml", ["more.batch_size=9"])
    assert (source.data["eval"], source.data["more"]) == ({"batch_size": 4}, {"batch_size": 9})


def test_many_paths_are_a_recipe() -> None:
    paths = ", ".join(f"text/part-{number:05}.txt" for number in range(MAX_NODES // 2))
    found = parse_recipe(YamlSource(RECIPE.replace("a.txt", paths), "r.yaml"))
    assert len(found.data.source.paths) == MAX_NODES // 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.steps=100000000000000000000",
            "train.steps: input should be less than or equal to 1000000000, got 1",
        ),
        ("model.num_layers=1000000000", "model.num_layers: input should be less than or equal to 256, got 1000000000"),
        ("model.loop.count=200", "loop.count 200 unrolls 2 layers to 400 steps; at most 256 can be run"),
        ("model.hidden_size=1000000000000", "model.hidden_size: input should be less than or equal to"),
        ("model.vocab_size=18446744073709551616", "model.vocab_size: input should be less than or equal to 16777216"),
        ("data.sequence_length=1000000000000000", "data.sequence_length: input should be less than or equal to"),
        ("train.batch_size=10000000000000000000000", "train.batch_size: input should be less than or equal to"),
        ("train.learning_rate=1e300", "train.learning_rate: input should be less than or equal to 1e+30, got"),
        ("train.learning_rate=1e-320", "learning_rate 1e-320 is nothing in float32"),
        ("train.learning_rate=1e-400", "1e-400 is too small a number"),
        ("train.max_grad_norm=1e-40", "max_grad_norm 1e-40 is nothing in float32"),
        ("train.keep_checkpoints=" + "9" * 30, "train.keep_checkpoints: input should be less than or equal to"),
        ("seed=18446744073709551616", "seed: input should be less than 4294967296"),
        ("model.norm_eps=1e-320", "model.norm_eps: input should be greater than or equal to 1e-20"),
        ("model.rope_theta=1e300", "model.rope_theta: input should be less than or equal to"),
        ("mixer={name: hyper_connections, num_streams: 1000000000}", "mixer.num_streams: "),
        ("mixer={name: depth_attention, stride: 1000000000000}", "mixer.stride: "),
        ("mixer={name: attn_res, recency_bias: .nan}", "mixer.recency_bias: must be finite"),
        ("mixer={name: attn_res, recency_bias: 1e300}", "mixer.recency_bias: must be finite, and at most 1e+30"),
        ("mixer={name: residual, x: " + "[" * 50 + "]" * 50 + "}", "more than 40 mappings and lists"),
        ("data.source.paths=[2024-02-30]", "2024-02-30 is a date to some readers of YAML"),
    ],
)
def test_numbers_without_end(override: str, words: str) -> None:
    with pytest.raises(RecipeError) as found:
        parse_recipe(YamlSource(RECIPE, "r.yaml", [override]))
    text = str(found.value)
    assert text.startswith(f"override '{override[:40]}")
    assert words in text


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "pipe": "is a pipe or a device",
        "loop": "cannot be read: ",
        "a\0b": "cannot be read: ",
    }.items():
        with pytest.raises(RecipeError, match=words):
            YamlSource.read(tmp_path / name)
    with pytest.raises(RecipeError, match="is a pipe or a device"):
        YamlSource.read(Path("/dev/zero"))


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert parse_recipe(YamlSource.read(tmp_path / "r.yaml")) == parse_recipe(YamlSource(RECIPE, "r.yaml"))


def test_showing_a_large_value_takes_no_time() -> None:
    large = {"a": [["x" * 1000] * 1000] * 1000, "b": 10**4000}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    from mixerzoo.validation import shown

    assert len(shown(large)) <= 60
    assert len(shown([10**4000])) <= 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 1
