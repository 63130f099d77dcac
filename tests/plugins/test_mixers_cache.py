"""Mixers that act through the plan alone: their plans, their bytes, the projections that are gone, and prefill."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import mixerzoo
import zoo
from mixerzoo import Decoder, MixerError
from zoo import assert_close, some_tokens

MIXERS = ("svformer", "cla", "yoco", "fusedkv_lite")
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


@every_mixer
@given(data=st.data(), model=zoo.models())
def test_the_plan_is_the_paper_s(mixer: str, data: st.DataObject, model: dict[str, Any]) -> None:
    options = data.draw(zoo.OPTIONS[mixer], label="options")
    plan = zoo.build_drawn(mixer, options, model).plan
    num_steps = len(plan.order)
    expected = [zoo.NAIVE[mixer].slots(step, num_steps, **options) for step in range(num_steps)]
    assert [read[0] for read in plan.k_reads] == [k for k, _, _ in expected]
    assert [read[0] for read in plan.v_reads] == [v for _, v, _ in expected]
    assert [plan.window(step) for step in range(num_steps)] == [window for _, _, window in expected]


# Bytes.


def cache_bytes(decoder: Decoder, num_tokens: int, chunks: int, fixed: bool) -> int:
    """What a cache holds after a sequence was decoded through it in pieces; its logits are checked on the way."""
    tokens = some_tokens(2, num_tokens)
    cache = decoder.new_cache(2, num_tokens if fixed else None)
    pieces = [decoder(piece, cache) for piece in tokens.tensor_split(chunks, dim=1)]
    assert_close(torch.cat(pieces, dim=1), decoder(tokens))
    return cache.nbytes


@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
@pytest.mark.parametrize(
    ("mixer", "options", "num_layers", "ratio"),
    [
        ("svformer", {}, 6, Fraction(6 + 1, 2 * 6)),
        ("svformer", {}, 3, Fraction(3 + 1, 2 * 3)),
        ("cla", {"group": 1}, 6, Fraction(1)),
        ("cla", {"group": 2}, 6, Fraction(1, 2)),
        ("cla", {"group": 3}, 6, Fraction(1, 3)),
        ("cla", {"group": 6}, 6, Fraction(1, 6)),
        ("cla", {"group": 2}, 5, Fraction(3, 5)),
        ("fusedkv_lite", {}, 6, Fraction(1, 2)),
        ("fusedkv_lite", {}, 5, Fraction(3, 5)),
        ("fusedkv", {}, 6, Fraction(1, 2)),
        ("fusedkv", {}, 5, Fraction(3, 5)),
        # 1/L for the global cache, and a window in the lower half.
        ("yoco", {"window": 3}, 6, Fraction(1, 6) + Fraction(1, 2) * Fraction(3, 20)),
        ("yoco", {"window": 3, "self_layers": 4, "cross_layers": 2}, 6, Fraction(1, 6) + Fraction(1, 10)),
        ("yoco", {"window": 1024}, 6, Fraction(1, 6) + Fraction(1, 2)),
    ],
)
@torch.no_grad()
def test_the_cache_is_smaller_by_the_ratio_of_the_paper(
    mixer: str, options: dict[str, Any], num_layers: int, ratio: Fraction, fixed: bool
) -> None:
    ours = zoo.make(zoo.ZooCase(mixer, options), num_layers=num_layers)
    plain = zoo.make(zoo.ZooCase("residual"), num_layers=num_layers)
    measured = [cache_bytes(decoder, 20, 7, fixed) for decoder in (ours, plain)]
    assert Fraction(*measured) == ratio


def test_yoco_s_windows_stop_growing() -> None:
    decoder = zoo.make(zoo.ZooCase("yoco", {"window": 4}))
    slot = 2 * zoo.MODEL["num_kv_heads"] * zoo.MODEL["head_dim"]
    sizes = [decoder.plan.elements(decoder.shape, length) for length in range(1, 9)]
    assert [after - before for before, after in pairwise(sizes)] == [3 * slot] * 3 + [slot] * 4


# What borrows has no projection.


@every_mixer
@given(data=st.data(), model=zoo.models())
def test_layers_that_borrow_in_every_run_have_no_projection(
    mixer: str, data: st.DataObject, model: dict[str, Any]
) -> None:
    decoder = zoo.build_drawn(mixer, data.draw(zoo.OPTIONS[mixer], label="options"), model)
    plain = zoo.build("residual", {}, model)
    shape, order = decoder.shape, decoder.plan.order
    own_k = {layer for step, layer in enumerate(order) if decoder.plan.owns_k(step)}
    own_v = {layer for step, layer in enumerate(order) if decoder.plan.owns_v(step)}
    for layer in range(shape.num_layers):
        names = {name for name, _ in decoder.model.layers[layer].self_attn.named_parameters()}
        assert ("k_proj.weight" in names) == (layer in own_k)
        assert ("v_proj.weight" in names) == (layer in own_v)
    projection = shape.hidden_size * shape.num_kv_heads * shape.head_dim
    gone = projection * (2 * shape.num_layers - len(own_k) - len(own_v))
    if decoder.config.qk_norm:
        gone += shape.head_dim * (shape.num_layers - len(own_k))
    assert plain.num_parameters()[0] - decoder.num_parameters()[0] == gone
    assert decoder.num_parameters()[1] == 0


# Where they are the plain decoder.


@given(model=zoo.models())
@torch.no_grad()
def test_cla_of_groups_of_one_is_residual(model: dict[str, Any]) -> None:
    ours, plain = zoo.build("cla", {"group": 1}, model), zoo.build("residual", {}, model)
    tokens = some_tokens(2, 5)
    assert ours.plan == plain.plan
    assert torch.equal(zoo.perturb(ours)(tokens), zoo.perturb(plain)(tokens))


@every_mixer
@torch.no_grad()
def test_one_layer_is_residual(mixer: str) -> None:
    tokens = some_tokens(2, 5)
    ours, plain = (zoo.make(zoo.ZooCase(name), num_layers=1) for name in (mixer, "residual"))
    assert ours.plan == plain.plan
    assert torch.equal(ours(tokens), plain(tokens))


# Refusals.


@pytest.mark.parametrize(
    ("mixer", "options", "borrowing"),
    [
        ("svformer", {}, [1, 2, 3]),
        ("cla", {"group": 2}, [1, 3]),
        ("yoco", {}, [3]),
        ("fusedkv_lite", {}, [2, 3]),
        ("fusedkv", {}, [2, 3]),
    ],
)
@pytest.mark.parametrize("other", ["depth_attention", "value_residual", "lime", "moda"])
def test_a_mixer_that_needs_its_own_keys_and_values_cannot_be_joined(
    other: str, mixer: str, options: dict[str, Any], borrowing: list[int]
) -> None:
    parts = [{"name": mixer, **options}, {"name": other}]
    with pytest.raises(MixerError) as refused:
        zoo.build("compose", {"of": parts}, {})
    text = str(refused.value)
    assert "needs each layer's own keys and values" in text
    assert f"steps {borrowing} borrow theirs" in text


def test_what_borrows_nothing_can_be_joined() -> None:
    parts = [{"name": "cla", "group": 1}, {"name": "depth_attention"}]
    assert zoo.build("compose", {"of": parts}, {}).plan.slots == zoo.build("residual", {}, {}).plan


@every_mixer
@torch.no_grad()
def test_any_mixer_of_the_stream_can_be_joined(mixer: str) -> None:
    decoder = zoo.perturb(zoo.build("compose", {"of": [{"name": mixer}, {"name": "denseformer"}]}, {}))
    assert decoder.plan == zoo.build(mixer, {}, {}).plan
    tokens = some_tokens(2, 6)
    cache = decoder.new_cache(2)
    pieces = [decoder(piece, cache) for piece in tokens.split([2, 3, 1], dim=1)]
    assert_close(torch.cat(pieces, dim=1), decoder(tokens))


def test_two_plans_are_refused() -> None:
    with pytest.raises(MixerError, match="'cla' and 'svformer' each define the plan"):
        zoo.build("compose", {"of": [{"name": "cla"}, {"name": "svformer"}]}, {})


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        zoo.build("yoco", {"window": 1}, {})


# Prefill.

PREFILL = [
    ("yoco", {"window": 4}, 4),
    ("yoco", {"window": 4, "self_layers": 1, "cross_layers": 7}, 1),
    ("fusedkv_lite", {}, 3),
    ("fusedkv", {}, 3),
]


def tokens_by_step(decoder: Decoder, run: Any) -> list[list[int]]:
    """How many tokens each layer's MLP was given, in every forward that ``run`` made."""
    seen: list[list[int]] = [[] for _ in decoder.model.layers]
    handles = [
        layer.mlp.register_forward_hook(lambda *call, lengths=lengths: lengths.append(call[2].size(1)))
        for layer, lengths in zip(decoder.model.layers, seen, strict=True)
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(("mixer", "options", "last_owner"), PREFILL)
@pytest.mark.parametrize("fixed", [None, False, True], ids=["no cache", "growing", "fixed"])
@torch.no_grad()
def test_prefill_runs_the_upper_layers_for_the_last_token_alone(
    mixer: str, options: dict[str, Any], last_owner: int, fixed: bool | None
) -> None:
    decoder = zoo.make(zoo.ZooCase(mixer, options), num_layers=8)
    tokens = some_tokens(2, 12)
    full = decoder(tokens)
    cache = None if fixed is None else decoder.new_cache(2, 12 if fixed else None)
    last: list[torch.Tensor] = []
    seen = tokens_by_step(decoder, lambda: last.append(decoder(tokens[:, :9], cache, last_only=True)))
    assert seen == [[9] if layer <= last_owner else [1] for layer in range(8)]
    assert_close(last[0], full[:, 8:9])
    if cache is not None:  # and what comes after finds all that it needs
        assert_close(decoder(tokens[:, 9:], cache), full[:, 9:])


@torch.no_grad()
def test_generation_prefills_so() -> None:
    decoder = zoo.make(zoo.ZooCase("yoco", {"window": 4}), num_layers=8)
    prompt = some_tokens(2, 9)
    made: list[torch.Tensor] = []
    seen = tokens_by_step(decoder, lambda: made.append(mixerzoo.generate(decoder, prompt, max_new_tokens=3)))
    assert seen == [[9, 1, 1]] * 5 + [[1, 1, 1]] * 3
    expected = prompt
    for _ in range(3):
        expected = torch.cat([expected, decoder(expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made[0], expected)


@pytest.mark.parametrize(("mixer", "options"), [("yoco", {"window": 4}), ("fusedkv_lite", {}), ("fusedkv", {})])
@torch.no_grad()
def test_prefill_costs_about_half(mixer: str, options: dict[str, Any]) -> None:
    """The lower half, and in YOCO the layer that makes the global cache."""
    decoder = zoo.make(zoo.ZooCase(mixer, options), num_layers=24, num_kv_heads=1)
    tokens = some_tokens(1, 64)
    counted = []
    for last_only in (False, True):
        with FlopCounterMode(display=False) as counter:
            decoder(tokens, last_only=last_only)
        counted.append(counter.get_total_flops())
    assert 0.5 < counted[1] / counted[0] < 0.6
