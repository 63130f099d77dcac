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
CPU = torch.device("cpu")
LAYERS, WIDTH, TOKENS = 24, 128, 64
MODEL = ModelConfig(
    hidden_size=WIDTH, intermediate_size=256, num_layers=LAYERS, num_heads=4, num_kv_heads=2, vocab_size=32
)
#: What keeps more than its distinct sources, for now, by what is computed again; one that no longer does is taken out.
BEYOND = {
    "none": {"hyper_connections", "krom_hc"},
    "selective": {"hyper_connections", "krom_hc"},
}
#: Every layer's attention and MLP, the embedding, and of the weights one for each pair of source and reader.
SOURCES = 2 * LAYERS + 1
ALLOWED = 1.1 * (SOURCES + SOURCES * (SOURCES + 1) / 2 / WIDTH) / LAYERS


ROW = r"\| (-?[\d.]+) \| (yes|no) " * 2 + r"\|$"


@functools.cache
def kept(name, mode):
    """Vectors of the hidden size for each token and layer."""
    mixer = load_registry().get(name).mixer
    options = MixerChoice.model_validate(CHOICES[name]).options
    with torch.device("meta"):
        decoder = Decoder(MODEL, mixer, options)
    materialize(decoder, seed=0)
    decoder.model.activation_checkpointing = mode
    tokens = torch.arange(TOKENS)[None] % 32
    # Their policies would take the equation for sizes as small as these.
    with forms.forced("fused"):
        found = kept_bytes(lambda: decoder.model(tokens).sum(), CPU)
    return found / (torch.float32.itemsize * WIDTH * TOKENS * LAYERS)


def over(name, mode):
    return kept(name, mode) - kept("residual", mode)


def row(name):
    cells = (f" {over(name, mode):.2f} | {'yes' if over(name, mode) <= ALLOWED else 'no'} |" for mode in BEYOND)
    return f"| {name} |{''.join(cells)}"


def test_the_table_has_every_mixer():
    named = re.findall(rf"^\| (\w+) {ROW}", PAGE.read_text(), re.MULTILINE)
    names = sorted(set(OWN) - {"residual"})
    assert [name for name, *_ in named] == names, "\n".join(map(row, names))
    for mode in BEYOND:
        assert f"`residual` keeps {kept('residual', mode):.1f}" in PAGE.read_text()


@pytest.mark.parametrize("name", sorted(set(OWN) - {"residual"}))
def test_a_mixer_keeps_what_the_table_says(name):
    found = re.search(rf"^\| {name} {ROW}", PAGE.read_text(), re.MULTILINE)
    assert found, f"write {row(name)}"
    for mode, given, within in zip(BEYOND, found.groups()[::2], found.groups()[1::2], strict=True):
        assert over(name, mode) == pytest.approx(float(given), abs=0.01, rel=0.02), f"write {row(name)}"
        assert (over(name, mode) > ALLOWED) == (name in BEYOND[mode])
        assert (within == "no") == (name in BEYOND[mode])
