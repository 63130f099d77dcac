"""What autograd keeps of every built-in mixer: the table of docs/performance.md is true, and says what is within."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from mixerzoo import MixerChoice, ModelConfig, load_registry
from mixerzoo.benchmark import kept_bytes
from mixerzoo.model import Decoder, materialize
from mixerzoo.ops import forms
from own import CHOICES, OWN

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
LAYERS, WIDTH, TOKENS = 24, 128, 64
MODEL = ModelConfig(
    hidden_size=WIDTH, intermediate_size=256, num_layers=LAYERS, num_heads=4, num_kv_heads=2, vocab_size=32
)
#: What keeps more than its distinct sources, for now; one that no longer does is taken out.
BEYOND = {"dca", "hyper_connections", "krom_hc", "moda", "mudd"}
#: Every layer's attention and MLP, the embedding, and of the weights one for each pair of source and reader.
SOURCES = 2 * LAYERS + 1
ALLOWED = 1.1 * (SOURCES + SOURCES * (SOURCES + 1) / 2 / WIDTH) / LAYERS


@functools.cache
def kept(name):
    """Vectors of the hidden size for each token and layer."""
    mixer = load_registry().get(name).mixer
    options = MixerChoice.model_validate(CHOICES[name]).options
    with torch.device("meta"):
        decoder = Decoder(MODEL, mixer, options)
    materialize(decoder, seed=0)
    tokens = torch.arange(TOKENS)[None] % 32
    # Their policies would take the equation for sizes as small as these.
    with forms.forced("fused"):
        found = kept_bytes(lambda: decoder.model(tokens).sum(), decoder.parameters())
    return found / (torch.float32.itemsize * WIDTH * TOKENS * LAYERS)


def over(name):
    return kept(name) - kept("residual")


def row(name):
    return f"| {name} | {over(name):.2f} | {'yes' if over(name) <= ALLOWED else 'no'} |"


def test_the_table_has_every_mixer():
    named = re.findall(r"^\| (\w+) \| -?[\d.]+ \| (?:yes|no) \|$", PAGE.read_text(), re.MULTILINE)
    assert named == sorted(set(OWN) - {"residual"}), "\n".join(row(name) for name in sorted(set(OWN) - {"residual"}))
    assert f"There `residual` keeps {kept('residual'):.1f} of them" in PAGE.read_text()


@pytest.mark.parametrize("name", sorted(set(OWN) - {"residual"}))
def test_a_mixer_keeps_what_the_table_says(name):
    found = re.search(rf"^\| {name} \| (-?[\d.]+) \| (yes|no) \|$", PAGE.read_text(), re.MULTILINE)
    assert found, f"write {row(name)}"
    assert over(name) == pytest.approx(float(found[1]), abs=0.01, rel=0.02), f"write {row(name)}"
    assert (over(name) > ALLOWED) == (name in BEYOND)
    assert (found[2] == "no") == (name in BEYOND)
