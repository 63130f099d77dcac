"""`list`, `show`, `describe` and `schema`: what they tell, in words and in JSON."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

import mixerzoo
from command_line import RECIPE, output_of
from mixerzoo.describe import options, snippet
from mixerzoo.mixer.registry import Registry
from mixerzoo.recipe.schema import json_schema
from mixerzoo.yaml_text import from_yaml, to_yaml
from own import CHOICES, OWN


def squeezed(text: str) -> str:
    return "".join(text.split())


# list.


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_list_shows_every_mixer_in_full(columns: int) -> None:
    # What cannot be loaded is told in lines that do not wrap.
    shown = output_of("list", columns=columns).partition("\nCould not be loaded")[0]
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    # Cells wrap, so their characters are looked for one column of the table at a time.
    start = [shown.splitlines()[0].index(header) for header in ("Acts on", "Parameters")] if columns >= 80 else None
    for entry in map(mixerzoo.load_registry().get, OWN):
        card = entry.mixer.card
        assert entry.mixer.name in shown
        assert columns < 200 or card.paper in shown
        assert card.family in shown
        if start is not None:
            column = squeezed("".join(line[start[0] : start[1]] for line in shown.splitlines()))
            assert squeezed(card.acts_on) in column


@pytest.mark.parametrize("columns", [80, 120])
def test_list_shows_where_every_mixer_comes_from(columns: int) -> None:
    shown = output_of("list", columns=columns).partition("\nWith default options")[0]
    entries = mixerzoo.load_registry().entries.values()
    for origin in {f"{entry.distribution} {entry.version}" for entry in entries}:
        of_it = [entry for entry in entries if f"{entry.distribution} {entry.version}" == origin]
        assert shown.count(origin) == len(of_it)
    if columns == 120:
        lines = {line.split()[0]: line for line in shown.splitlines() if line[:1].isalpha()}
        for entry in entries:
            assert lines[entry.mixer.name].rstrip().endswith(f"{entry.distribution} {entry.version}")


def test_list_compares_figures_of_one_decoder() -> None:
    rows = {line.split()[0]: line for line in output_of("list", columns=200).splitlines() if line.strip()}
    # 24 layers: 24 + 1 values-and-keys slots of 48; source layers 0 and 12, each a key and a value as wide as a state.
    assert re.search(r" 0\s+0\.52×\s+1× ", rows["svformer"])
    assert re.search(r" 0\s+1×\s+5× ", rows["depth_attention"])
    assert re.search(r" 324\s+1×\s+25× ", rows["denseformer"])
    found = json.loads(output_of("list", "--json"))
    (mixer,) = (mixer for mixer in found["mixers"] if mixer["name"] == "svformer")
    assert mixer["compared"] == {"parameters": 0, "cache_relative": 25 / 48, "in_flight_relative": 1.0}


def test_list_json() -> None:
    found = json.loads(output_of("list", "--json"))
    assert not [broken for broken in found["broken_plugins"] if broken["plugin"].startswith("mixerzoo:")]
    entries = mixerzoo.load_registry().entries
    assert {mixer["name"] for mixer in found["mixers"]} == set(entries)
    assert found["mixers"][0]["name"] == "residual"
    (mixer,) = (mixer for mixer in found["mixers"] if mixer["name"] == "depth_attention")
    card = entries["depth_attention"].mixer.card
    assert mixer["kv_bytes_per_token"] == card.kv_bytes
    assert mixer["in_flight_bytes_per_token"] == card.in_flight_bytes
    assert mixer["parameters"] == "0"
    assert (mixer["distribution"], mixer["version"]) == ("mixerzoo", mixerzoo.__version__)


def test_list_reports_broken_plugins_and_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_plugin.py").write_text("raise ValueError('[red]out of order[/red]')")
    monkeypatch.syspath_prepend(tmp_path)
    points = [*entry_points(group="mixerzoo"), EntryPoint("bad", "bad_plugin", "mixerzoo")]
    registry = Registry(points)
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    shown = output_of("list")
    assert "depth_attention" in shown
    assert "unknown:bad: ValueError: [red]out of order[/red]" in shown
    found = json.loads(output_of("list", "--json"))
    assert len(found["mixers"]) == len(mixerzoo.load_registry().entries)
    (broken,) = (broken for broken in found["broken_plugins"] if broken["plugin"] == "unknown:bad")
    assert broken["reason"] in broken["details"]
    assert "Traceback" in broken["details"]


# show.


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", OWN)
def test_show_tells_the_whole_card(name: str, columns: int) -> None:
    shown = output_of("show", name, columns=columns)
    card = mixerzoo.load_registry().get(name).mixer.card
    rest = squeezed(shown)
    for text in (card.title, card.summary, card.paper, card.equation, card.notes):
        assert squeezed(text) in rest
    for words in (card.acts_on, card.parameters, card.kv_bytes, card.in_flight_bytes, card.neutral):
        assert all(word in shown for word in words.split() if len(word) < 20)
    for option in options(mixerzoo.load_registry().get(name).mixer):
        assert option.name in shown


@pytest.mark.parametrize("name", [name for name in OWN if CHOICES[name] == {"name": name}])
def test_the_snippet_can_be_pasted(name: str, tmp_path: Path) -> None:
    shown = output_of("show", name, columns=60)
    pasted = shown[shown.index("\nmixer:\n") + 1 :]
    choice = from_yaml(pasted)["mixer"]
    mixer = mixerzoo.load_registry().get(name).mixer
    assert choice == {"name": name, **mixer.Config().model_dump(mode="json")}
    path = tmp_path / "pasted.yaml"
    path.write_text(to_yaml({**RECIPE, "mixer": None}).replace("mixer: null\n", pasted))
    assert json.loads(output_of("describe", path, "--json"))["mixer"] == choice


def test_show_json() -> None:
    found = json.loads(output_of("show", "attn_res", "--json"))
    card = mixerzoo.load_registry().get("attn_res").mixer.card
    assert found["equation"] == card.equation
    assert found["dialects"] == dict(card.dialects)
    dialect, block_size, _ = found["options"]
    assert (dialect["name"], dialect["type"], dialect["default"]) == ("dialect", "kimi | snapshot", "kimi")
    assert (block_size["type"], block_size["default"], block_size["required"]) == ("whole number ≥ 1", 1, False)
    assert from_yaml(found["recipe"])["mixer"]["block_size"] == 1


def test_types_of_options_in_words() -> None:
    class Inner(mixerzoo.MixerConfig):
        depth: int = 1

    class Config(mixerzoo.MixerConfig):
        layers: int = Field(ge=1, le=2**40, description="How many.")
        share: float | None = Field(None, gt=0, lt=0.5)
        mode: Literal["on", "off"] = "on"
        only: Literal["this"] = "this"
        flag: bool = True
        names: tuple[str, ...] = Field(default_factory=lambda: ("a", "b"))
        inner: Inner = Inner()
        anything: Any = None

    mixer = type("Some", (mixerzoo.Mixer,), {"name": "some", "Config": Config})
    found = {option.name: (option.type, option.default) for option in options(mixer)}
    assert found == {
        "layers": ("whole number ≥ 1, ≤ 1099511627776", None),
        "share": ("number > 0, < 0.5 or null", None),
        # YAML 1.1 reads a bare on or off as true or false.
        "mode": ("'on' | 'off'", "on"),
        "only": ("this", "this"),
        "flag": ("true or false", True),
        "names": ("list of text", ["a", "b"]),
        "inner": ("mapping", {"depth": 1}),
        "anything": ("any value", None),
    }
    lines = snippet(mixer).splitlines()
    assert lines[:3] == ["mixer:", "  name: some", "  layers:  # required, whole number ≥ 1, ≤ 1099511627776"]
    values = from_yaml(snippet(mixer))["mixer"]
    assert (values["mode"], values["names"], values["inner"]) == ("on", ["a", "b"], {"depth": 1})


# describe.


@pytest.mark.parametrize("columns", [80, 120])
def test_describe_puts_the_costs_beside_the_baseline(recipe: Path, columns: int) -> None:
    shown = output_of("describe", recipe, "train.precision=bf16", columns=columns)
    assert max(map(len, shown.splitlines()[1:])) <= columns
    assert shown.startswith(f"{recipe}: depth_attention (stride 2, recent_window 0")
    assert "bytes in bfloat16" in " ".join(shown.split())
    rows = {line[:24].strip(): line[24:].split() for line in shown.splitlines() if line[:1].isalpha()}
    kv = f"{2 * 6 * 2 * 8 * 2:,}"
    assert rows["KV bytes per token"] == [kv, kv, "0", "%"]
    # Three sources in flight.
    assert rows["In-flight bytes per toke"][-4:] == ["256", "64", "+300", "%"]
    assert rows["Mixer parameters"] == ["0", "0", "0", "%"]
    assert "\n4  · ● · ● · ●\n" in shown


def test_describe_a_baseline_has_nothing_beside_it(recipe: Path) -> None:
    shown = output_of("describe", recipe, "mixer={name: residual}")
    assert "Extra" not in shown
    assert "No site combines" in shown


def test_describe_json_holds_the_same_numbers(recipe: Path) -> None:
    found = json.loads(output_of("describe", recipe, "mixer={name: denseformer}", "--json"))
    assert found["mixer"] == {"name": "denseformer", "dilation": 1, "period": 1}
    assert found["mixer_parameters"] == sum(range(2, 8))
    assert found["parameters"] == found["decoder_parameters"] + found["mixer_parameters"]
    assert found["kv_bytes_per_token"] == 2 * 6 * 2 * 8 * 4
    assert found["cache_bytes"] == 64 * found["kv_bytes_per_token"]
    assert found["extra_percent"]["mixer_parameters"] is None
    shown = output_of("describe", recipe, "mixer={name: denseformer}")
    for key in ("parameters", "mixer_parameters", "in_flight_bytes_per_token", "flops_per_token"):
        assert f"{found[key]:,}" in shown
        assert f"{found['residual'][key]:,}" in shown
    assert "new" in shown


def test_describe_a_deep_model_fits_80_columns(recipe: Path) -> None:
    for mixer in ("{name: attn_res}", "{name: denseformer}", "{name: depth_attention}"):
        shown = output_of("describe", recipe, f"mixer={mixer}", "model.num_layers=48")
        assert max(map(len, shown.splitlines()[1:])) <= 80


# schema.


def test_schema() -> None:
    assert json.loads(output_of("schema")) == json_schema()
