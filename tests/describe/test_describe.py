"""Costs of a decoder against formulas written from the paper."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixerzoo import Decoder, ModelConfig, Plan, build, load_registry
from mixerzoo.describe.description import count_costs, describe, flops_per_token
from mixerzoo.errors import RecipeError
from mixerzoo.model.layer import Layer
from paper_recipes import PAPER_SIZES, SEQUENCE, VOCAB, make_recipe, paper_recipe, small_model


def decoder_with_plan(made: Plan) -> Decoder:
    """A plain residual decoder whose steps share slots or see windows."""

    class Planned(load_registry().get("residual").mixer):  # type: ignore[misc]  # a class found at run time
        name = "planned"

        def plan(self) -> Plan:
            return made

    return Decoder(ModelConfig(**small_model(len(made.order))), Planned)


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameters_are_those_of_the_paper(size: str) -> None:
    hidden, mlp, layers, heads, kv_heads, _, written = PAPER_SIZES[size]
    found = describe(paper_recipe(size))
    attention = 2 * hidden * heads * 64 + 2 * hidden * kv_heads * 64 + 2 * 64
    expected = 2 * VOCAB * hidden + layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden
    assert found.costs.parameters == found.costs.decoder_parameters == expected
    assert found.costs.mixer_parameters == 0
    shown = f"{expected / 1e6:.0f}M" if expected < 1e9 else f"{expected / 1e9:.2f}B"
    assert shown == written


@pytest.mark.parametrize("size", PAPER_SIZES)
@pytest.mark.parametrize(("precision", "width"), [("float32", 4), ("bf16", 2)])
def test_bytes_follow_from_the_sizes_and_the_precision(size: str, precision: str, width: int) -> None:
    hidden, _, layers, _, kv_heads, _, _ = PAPER_SIZES[size]
    found = describe(paper_recipe(size, train={"precision": precision}))
    per_token = 2 * layers * kv_heads * 64 * width
    assert found.costs.kv_bytes_per_token == found.baseline.kv_bytes_per_token == per_token
    assert found.costs.cache_bytes == SEQUENCE * per_token
    assert found.costs.weight_bytes == width * found.costs.parameters
    # Two source layers, 0 and s, each with keys and values; the stream besides.
    assert found.costs.in_flight_bytes_per_token == width * (hidden + 2 * 2 * kv_heads * 64)
    assert found.baseline.in_flight_bytes_per_token == width * hidden


def test_depth_attention_costs_the_flops_that_the_paper_counts() -> None:
    found = describe(paper_recipe("3B"))
    extra = found.costs.flops_per_token - found.baseline.flops_per_token
    assert extra == 4 * 8 * 64 * 117
    assert f"{extra:.2e}" == "2.40e+05"
    assert 100 * extra / (2 * found.costs.parameters) == pytest.approx(0.004, abs=5e-4)
    percent = found.extra_percent()
    assert percent["flops_per_token"] == pytest.approx(100 * extra / found.baseline.flops_per_token)
    assert percent["parameters"] == 0
    assert percent["mixer_parameters"] is None


def test_flops_of_the_baseline_are_weights_and_attention() -> None:
    hidden, mlp, layers, heads, kv_heads, _, _ = PAPER_SIZES["1.5B"]
    layer = 2 * hidden * heads * 64 + 2 * hidden * kv_heads * 64 + 3 * hidden * mlp
    attention = 4 * heads * 64 * (SEQUENCE + 1) / 2
    expected = 2 * (layers * layer + VOCAB * hidden) + layers * attention
    assert describe(paper_recipe("1.5B")).baseline.flops_per_token == expected


def test_flops_look_at_each_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(3, loop={"prelude": 1, "coda": 1, "count": 40})
    decoder = build(make_recipe(model, {"name": "residual"}), device="meta")
    looked = []
    named = Layer.named_modules
    monkeypatch.setattr(Layer, "named_modules", lambda self: looked.append(self) or named(self))
    flops_per_token(decoder, SEQUENCE)
    assert len(looked) == 3


PLANS = {
    "plain": Plan.plain((0, 1, 2, 3)),
    "looped": Plan.plain((0, 1, 2, 1, 2, 3)),
    "shared keys and values": Plan.borrowing((0, 1, 2, 3), (0, 0, 2, 2), (0, 0, 2, 2), (None,) * 4),
    "shared values": Plan.borrowing((0, 1, 2, 3), (0, 1, 2, 3), (0, 0, 0, 0), (None,) * 4),
    "windows": Plan.borrowing((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (3, 5, None, 100)),
}


@pytest.mark.parametrize("name", PLANS)
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    """Projections as PyTorch counts them while they run; attention token by token."""
    length = 7
    made = PLANS[name]
    if max(made.order) + 1 < len(made.order):
        config = ModelConfig(**small_model(max(made.order) + 1, loop={"prelude": 1, "coda": 1, "count": 2}))
        assert config.order == made.order
        decoder = Decoder(config, load_registry().get("residual").mixer)
    else:
        decoder = decoder_with_plan(made)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.zeros(1, length, dtype=torch.long))
    projections = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    attended = sum(
        min(position + 1, made.window(step) or length) for step in range(len(made.order)) for position in range(length)
    )
    expected = projections / length + 4 * 4 * 8 * attended / length
    assert flops_per_token(decoder, length) == round(expected)


def test_bytes_of_shared_and_windowed_slots() -> None:
    per_slot = 2 * 8 * 4
    shared = count_costs(decoder_with_plan(PLANS["shared values"]), 50, torch.float32)
    assert shared.kv_bytes_per_token == (4 + 1) * per_slot
    windows = count_costs(decoder_with_plan(PLANS["windows"]), 50, torch.float32)
    assert windows.kv_bytes_per_token == 8 * per_slot
    assert windows.cache_bytes == 2 * (3 + 5 + 50 + 50) * per_slot


@pytest.mark.parametrize(
    "mixer",
    [{"name": "denseformer", "dilation": 2, "period": 3}, {"name": "attn_res", "block_size": 4}, {"name": "smear"}],
    ids=lambda mixer: mixer["name"],
)
def test_costs_are_those_of_the_running_decoder(mixer: dict[str, Any]) -> None:
    recipe = make_recipe(small_model(), mixer, data={"sequence_length": 9})
    found = describe(recipe)
    decoder = build(recipe)
    assert found.costs.parameters == sum(parameter.numel() for parameter in decoder.parameters())
    assert found.costs.mixer_parameters == sum(p.numel() for p in decoder.mixer.parameters()) > 0
    cache = decoder.new_cache(1)
    with torch.no_grad():
        decoder(torch.zeros(1, 9, dtype=torch.long), cache)
    assert found.costs.cache_bytes == cache.nbytes
    assert found.costs.kv_bytes_per_token == cache.bytes_per_token


def test_tied_weights_count_once() -> None:
    untied, tied = (
        describe(make_recipe(small_model(tie_embeddings=tied), {"name": "residual"})) for tied in (False, True)
    )
    assert untied.costs.parameters - tied.costs.parameters == 300 * 24
    assert untied.costs.flops_per_token == tied.costs.flops_per_token
    assert untied.costs == untied.baseline


def test_vocabulary_comes_from_the_tokenizer_where_that_is_known() -> None:
    open_size = small_model(vocab_size=None)
    assert describe(make_recipe(open_size, {"name": "residual"})).shape.vocab_size == 257
    pretrained = make_recipe(
        open_size, {"name": "residual"}, data={"tokenizer": {"name": "pretrained", "path": "gpt2"}}
    )
    with pytest.raises(RecipeError, match=r"vocabulary size is open.*model\.vocab_size=50304"):
        describe(pretrained)


def test_to_dict_is_json_with_plain_keys() -> None:
    found = describe(paper_recipe("360M")).to_dict()
    mixer = json.loads(json.dumps(found, allow_nan=False))["mixer"]
    assert mixer.items() >= {"name": "depth_attention", "stride": 12, "recent_window": 0}.items()
    costs = {
        "parameters",
        "decoder_parameters",
        "mixer_parameters",
        "weight_bytes",
        "kv_bytes_per_token",
        "cache_bytes",
        "in_flight_bytes_per_token",
        "flops_per_token",
    }
    assert set(found["residual"]) == set(found["extra_percent"]) == costs
    assert set(found) == costs | {
        "mixer", "model", "sequence_length", "dtype", "residual", "extra_percent", "training", "picture"
    }  # fmt: skip
    assert (found["dtype"], found["sequence_length"]) == ("float32", SEQUENCE)
