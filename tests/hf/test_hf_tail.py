"""A tail, the last vectors of each sequence, as one more layer of a cache of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

import zoo
from hf_models import shared
from mixerzoo import Tail
from mixerzoo.errors import MixerError
from mixerzoo.hf import MixerZooConfig
from mixerzoo.hf.attention import HubPast
from zoo import ZooCase, assert_close, some_tokens

SMEAR = ZooCase("smear")


def test_a_tail_is_a_cache_layer_after_those_of_the_steps() -> None:
    config = shared(SMEAR).config
    assert (config.num_hidden_layers, config.num_physical_layers, config.sliding_window) == (5, 4, 2)
    assert config.layer_types == ["full_attention"] * 4 + ["sliding_attention"]
    assert config.to_dict()["num_hidden_layers"] == 4
    assert MixerZooConfig(**config.to_dict()).layer_types == config.layer_types
    beside_a_window = MixerZooConfig(**config.to_dict() | {"attention_window": 3, "attention_window_layers": [1]})
    assert beside_a_window.sliding_window == 3


def test_a_tail_longer_than_the_one_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shared(SMEAR).config.to_dict()
    plan = replace(zoo.build("smear", {}, {}).plan, tail=Tail(3, 16))
    monkeypatch.setattr(zoo.mixer_class("smear"), "plan", lambda self: plan)
    assert MixerZooConfig(**config).sliding_window == 4
    with pytest.raises(MixerError, match=r"'smear' keeps a tail of 3 vectors beside a window of 3 .* at least 4"):
        MixerZooConfig(**config | {"attention_window": 3})


def test_a_slot_that_is_written_in_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shared(ZooCase("residual")).config.to_dict()
    plan = replace(zoo.build("residual", {}, {}).plan, k_writes=(0, 0, 2, 3), k_reads=((0,), (0,), (2,), (3,)))
    monkeypatch.setattr(zoo.mixer_class("residual"), "plan", lambda self: plan)
    with pytest.raises(MixerError, match=r"'residual' lets steps write one slot in turn.*use `mixerzoo generate`"):
        MixerZooConfig(**config)


@torch.no_grad()
def test_no_text_is_given_the_tail_of_another() -> None:
    decoder, tokens = zoo.shared(SMEAR), some_tokens(1, 7)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = shared(SMEAR)(tokens, position_ids=positions, use_cache=False).logits
    assert_close(packed, decoder(tokens, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))
    # A text that is not the row's first, and says so by a mask alone.
    apart = torch.ones(7, 7, dtype=torch.bool).tril()
    apart[3:, :3] = False
    for mask in (apart[None, None], {"full_attention": apart[None, None]}):
        with pytest.raises(MixerError, match=r"'smear' keeps a tail .*; pass position_ids that begin anew with each"):
            shared(SMEAR)(tokens, attention_mask=mask, use_cache=False)
    shared(SMEAR)(tokens, attention_mask=apart[None, None], position_ids=positions, use_cache=False)


def some_vectors(length: int, seed: int) -> Tensor:
    """[B, T, width], of three rows."""
    return torch.randn(3, length, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["bare", "dynamic", "static", "short static"])
@given(
    length=st.integers(1, 3),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    rows=st.none() | st.permutations([0, 1, 2]),
)
def test_any_cache_gives_the_vectors_of_the_tokens_before(
    kind: str, length: int, chunks: list[int], rows: list[int] | None
) -> None:
    config = MixerZooConfig(**shared(SMEAR).config.to_dict())
    config.sliding_window = length + 1
    cache: Cache
    if kind.endswith("static"):
        # The short one has less room than a window.
        cache = StaticCache(config=config, max_cache_len=length if kind == "short static" else 25)
        chunks = [1] * length if kind == "short static" else chunks
    else:
        cache = DynamicCache(config=config) if kind == "dynamic" else DynamicCache()
    past = HubPast(config, cache, None, {}, nn.ModuleDict(), {})
    given_so_far = torch.zeros(3, length, 5, dtype=torch.float64)
    for seed, num_new in enumerate(chunks):
        new = some_vectors(num_new, seed)
        assert torch.equal(past.extend_tail(4, new, length), given_so_far[:, -length:])
        given_so_far = torch.cat([given_so_far, new], dim=1)
        if rows is not None:
            cache.layers[4].reorder_cache(torch.tensor(rows))
            given_so_far = given_so_far[rows]
