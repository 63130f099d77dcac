"""Drawings show what the mixer and its plan say, arc for arc."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from mixerzoo import LoopConfig, Mixer, load_registry
from mixerzoo.describe import diagram
from mixerzoo.errors import MixerError
from mixerzoo.model import Decoder, ModelConfig

SVG = "{http://www.w3.org/2000/svg}"
MIXED, KEYS, VALUES = "#3b82f6", "#2f9e44", "#d9730d"


def decoder(name: str, num_layers: int = 6, **options: Any) -> Decoder:
    loop = {"loop": options.pop("loop")} if "loop" in options else {}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 9}
    config = ModelConfig(num_layers=num_layers, **sizes, **loop)
    mixer: type[Mixer] = load_registry().get(name).mixer
    with torch.device("meta"):
        return Decoder(config, mixer, mixer.Config(**options))


def arcs(drawn: str) -> dict[str, int]:
    """How many of each colour."""
    paths = ElementTree.fromstring(drawn).iter(f"{SVG}path")
    found = [path.get("stroke") for path in paths]
    return {colour: found.count(colour) for colour in (MIXED, KEYS, VALUES)}


@pytest.mark.parametrize(
    ("name", "options", "mixed", "keys", "values"),
    [
        ("residual", {}, 0, 0, 0),
        # Layer 0 for 1 to 5, layer 3 for 4 and 5.
        ("depth_attention", {"stride": 3}, 7, 0, 0),
        # After block t all t earlier blocks' inputs: the embedding and t − 1 outputs.
        ("denseformer", {}, 1 + 2 + 3 + 4 + 5 + 6, 0, 0),
        ("svformer", {}, 0, 0, 5),
        ("cla", {"group": 3}, 0, 4, 4),
    ],
)
def test_every_read_is_an_arc(name: str, options: dict[str, Any], mixed: int, keys: int, values: int) -> None:
    assert arcs(diagram(decoder(name, **options))) == {MIXED: mixed, KEYS: keys, VALUES: values}


@pytest.mark.parametrize(
    ("name", "options", "weighed", "tables", "late", "streams"),
    [
        ("residual", {}, 0, 0, 0, 1),
        ("scaled_residual", {}, 12, 0, 0, 1),
        ("hyper_connections", {"num_streams": 3}, 12, 0, 0, 3),
        ("krom_hc", {}, 12, 0, 0, 4),
        # All but the first sublayer.
        ("ladder", {}, 0, 0, 11, 1),
        # Layers 1, 3 and 5.
        ("value_embedding", {}, 0, 3, 0, 1),
        # Arcs say it.
        ("denseformer", {}, 0, 0, 0, 1),
    ],
)
def test_what_only_the_calls_tell_is_drawn(
    name: str, options: dict[str, Any], weighed: int, tables: int, late: int, streams: int
) -> None:
    drawn = diagram(decoder(name, **options))
    marks = [drawn.count(f'class="mark-{mark}"') for mark in ("weighed", "table")]
    assert (*marks, drawn.count("stroke-dasharray")) == (weighed, tables, late)
    root = ElementTree.fromstring(drawn)
    # From the embedding over 12 sites to the head.
    assert len(list(root.iter(f"{SVG}line"))) == 13 * streams
    assert (f"{streams} streams side by side" in drawn) == (streams > 1)
    assert (f"{streams} streams<" in drawn) == (streams > 1)
    assert ("sites do not wait for the newest output" in drawn) == (late > 0)


def test_a_tail_is_an_arrow_from_the_tokens_before() -> None:
    assert ">the token before<" in diagram(decoder("smear"))
    assert "token before<" not in diagram(decoder("residual"))


def test_what_cannot_be_followed_is_drawn_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = load_registry().get("ladder").mixer

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("not on zeros")

    model = decoder("ladder")
    monkeypatch.setattr(mixer, "start", fails)
    drawn = diagram(model)
    assert "stroke-dasharray" not in drawn
    assert "what its calls depend on could not be followed" in drawn


def test_boxes_are_the_steps_of_a_looped_decoder() -> None:
    drawn = diagram(decoder("residual", 3, loop=LoopConfig(prelude=1, coda=1, count=2)), title="twice & again")
    root = ElementTree.fromstring(drawn)
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words == [
        "embedding", *(f"{part} {layer}" for layer in (0, 1, 1, 2) for part in ("attention", "MLP")), "head",
    ]  # fmt: skip
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == "twice & again"


def test_on_a_page_it_takes_the_page_s_ink() -> None:
    model = decoder("cla")
    assert "<style>" in diagram(model)
    assert diagram(model, standalone=False) == diagram(model.mixer, standalone=False)
    assert "<style>" not in diagram(model, standalone=False)


def test_what_nobody_could_read_is_refused() -> None:
    with pytest.raises(MixerError, match="at most 24 steps; this decoder has 25"):
        diagram(decoder("residual", 25))


def test_the_command_draws_on_standard_output() -> None:
    call = [sys.executable, "-m", "mixerzoo", "describe", "recipes/small/denseformer.yaml", "--svg"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert arcs(done.stdout)[MIXED] == 21
    refused = subprocess.run([*call, "--json"], check=False, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--svg and --json are two outputs" in refused.stderr
