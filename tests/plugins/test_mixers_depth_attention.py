"""Depth-Attention's ablations: which layers are sources, how they are weighed, what is mixed, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mixerzoo
import zoo
from mixerzoo import KVCache, LoopConfig, MixerError
from zoo import ZooCase, assert_close, some_tokens

SIX = {"num_layers": 6}
ALL = {"stride": 1}


def sources(options: dict[str, Any], **model: Any) -> list[list[int]]:
    """For each step, the steps that it mixes in."""
    mixer = zoo.build("depth_attention", options, {**SIX, **model}).mixer
    sites = [site for site in mixer.shape.sites() if site.branch == "attention"]
    return [[s.step for s in mixer.sources(site) if s is not None and s != site] for site in sites]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sources": "strided", "stride": 2}, [[], [0], [0], [0, 2], [0, 2], [0, 2, 4]]),
        ({"sources": "relative", "stride": 1}, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        ({"sources": "relative", "stride": 2}, [[], [], [0], [1], [0, 2], [1, 3]]),
        ({"sources": "relative", "stride": 3}, [[], [], [], [0], [1], [2]]),
        ({"sources": "relative"}, [[], [], [], [0], [1], [2]]),
        ({"sources": "relative", "stride": 2, "recent_window": 1}, [[], [0], [0, 1], [1, 2], [0, 2, 3], [1, 3, 4]]),
        ({"sources": "relative", "stride": 5}, [[], [], [], [], [], [0]]),
        ({"sources": "relative", "stride": 9, "recent_window": 1}, [[], [0], [1], [2], [3], [4]]),
        ({"sources": "first"}, [[], [0], [0], [0], [0], [0]]),
    ],
    ids=str,
)
def test_which_layers_are_sources(options: dict[str, Any], expected: list[list[int]]) -> None:
    assert sources(options) == expected


def test_a_stride_at_which_no_layer_has_a_source_is_refused() -> None:
    with pytest.raises(MixerError, match="relative and stride 6 none of 6 layers has a source; set a shorter stride"):
        sources({"sources": "relative", "stride": 6})
    assert sources({"sources": "relative", "stride": 6}, num_layers=1) == [[]]


def test_sources_in_a_loop_are_latest_runs_and_own_earlier_ones() -> None:
    loop = LoopConfig(prelude=1, coda=1, count=2)
    # Layers 0 1 2 1 2 3.
    assert sources({"sources": "first"}, num_layers=4, loop=loop) == [[], [0], [0], [0, 1], [0, 2], [0]]
    relative = {"sources": "relative", "stride": 2}
    assert sources(relative, num_layers=4, loop=loop) == [[], [], [0], [1], [0, 2], [3]]


@given(model=zoo.models(), options=st.fixed_dictionaries({"weights": st.sampled_from(["softmax", "uniform"]),
       "mixes": st.sampled_from(["value", "key", "key_value"])}))  # fmt: skip
@torch.no_grad()
def test_rules_that_name_the_same_layers_compute_the_same(model: dict[str, Any], options: dict[str, Any]) -> None:
    def logits(**more: Any) -> torch.Tensor:
        return zoo.perturb(zoo.build("depth_attention", {**options, **more}, model))(some_tokens(2, 4))

    assert torch.equal(logits(sources="relative", stride=1), logits(stride=1))
    assert torch.equal(logits(sources="first"), logits(stride=model["num_layers"]))


def cache_of(options: dict[str, Any] | None, **model: Any) -> KVCache:
    """What a decoder of all sources has cached after four tokens; without options, the plain decoder."""
    case = ZooCase("residual") if options is None else ZooCase("depth_attention", {**ALL, **options})
    decoder = zoo.make(case, **model)
    cache = decoder.new_cache(2)
    decoder(some_tokens(2, 4), cache)
    return cache


@pytest.mark.parametrize("weights", ["softmax", "uniform"])
@torch.no_grad()
def test_what_is_not_mixed_stays_raw(weights: str) -> None:
    """Seen in the second layer: what it reads differs from the plain decoder's in nothing but the mix."""
    plain = cache_of(None)
    # The first layer has no sources, so the second one's input is the plain one.
    for mixes, key_mixed, value_mixed in (("value", False, True), ("key", True, False), ("key_value", True, True)):
        ours = cache_of({"weights": weights, "mixes": mixes})
        assert torch.equal(ours._keys[0], plain._keys[0])
        assert torch.equal(ours._values[0], plain._values[0])
        assert torch.equal(ours._keys[1], plain._keys[1]) != key_mixed
        assert torch.equal(ours._values[1], plain._values[1]) != value_mixed
        assert ours.nbytes == plain.nbytes


@torch.no_grad()
def test_uniform_weights_are_the_mean_of_mixed_sources_and_the_raw_self() -> None:
    plain, ours = cache_of(None), cache_of({"weights": "uniform", "mixes": "key_value"})
    assert_close(ours._values[1], (plain._values[0] + plain._values[1]) / 2, 1e-12)
    assert_close(ours._keys[1], (plain._keys[0] + plain._keys[1]) / 2, 1e-12)


@torch.no_grad()
def test_uniform_weights_need_no_queries() -> None:
    """What the cache holds of the second layer depends on no query; with a softmax it does."""
    for weights, depends in (("uniform", False), ("softmax", True)):
        decoder = zoo.make(ZooCase("depth_attention", {**ALL, "weights": weights}))
        cached = []
        for factor in (1, 3):
            decoder.model.layers[1].self_attn.q_norm.weight.mul_(factor)
            cache = decoder.new_cache(2)
            decoder(some_tokens(2, 4), cache)
            cached.append(cache._values[1].clone())
        assert torch.equal(*cached) != depends


@pytest.mark.parametrize(
    ("options", "tensors"),
    [
        ({}, 2),
        ({"mixes": "key"}, 1),
        ({"mixes": "key_value"}, 2),
        ({"weights": "uniform"}, 1),
        ({"weights": "uniform", "mixes": "key"}, 1),
        ({"weights": "uniform", "mixes": "key_value"}, 2),
    ],
    ids=str,
)
def test_no_more_is_held_than_asked_for(options: dict[str, Any], tensors: int) -> None:
    decoder = zoo.make(ZooCase("depth_attention", {**ALL, **options}), **SIX)
    size = decoder.shape.num_kv_heads * decoder.shape.head_dim
    # Before the last layer all five others are held.
    expected = (decoder.shape.hidden_size + 5 * tensors * size) * 8
    assert decoder.mixer.in_flight_bytes(torch.float64) == expected


@pytest.mark.parametrize("wrong", [{"stride": 2}, {"recent_window": 1}, {"stride": 1, "recent_window": 2}], ids=str)
def test_a_stride_beside_the_first_layer_alone_is_refused_in_words(wrong: dict[str, Any]) -> None:
    config = mixerzoo.load_registry().get("depth_attention").mixer.Config
    with pytest.raises(ValueError, match="first is layer 0 alone; leave out stride and recent_window, or choose"):
        config(sources="first", **wrong)
