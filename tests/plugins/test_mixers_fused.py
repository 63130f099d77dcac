"""Steps that read several slots: FusedKV, and plans and decoders of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from case import LATENT, ZooCase
from mixerzoo import AttentionMixer, Decoder, MixerError, Plan, Site
from mixerzoo.model.backends import BackendName
from mixerzoo.model.rope import Rotary
from zoo import assert_close, some_tokens


def fused(**model: Any) -> Decoder:
    """A decoder with FusedKV, its weights of sums perturbed."""
    return zoo.make(ZooCase("fusedkv"), **model)


def fusing_steps(decoder: Decoder) -> list[int]:
    """Steps that read more than one slot."""
    plan = decoder.plan
    return [step for step in range(len(plan.order)) if len(plan.k_reads[step]) > 1]


# The method.


@pytest.mark.parametrize(("num_layers", "storing"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_the_plan_is_the_paper_s(num_layers: int, storing: int) -> None:
    plan = fused(num_layers=num_layers).plan
    own = tuple(range(storing)) + (None,) * (num_layers - storing)
    assert plan.k_writes == plan.v_writes == own
    both = (0, storing - 1) if storing > 1 else (0,)
    assert plan.k_reads == plan.v_reads == tuple((s,) if s < storing else both for s in range(num_layers))
    assert ("fuse_kv" in plan.hooks) == (storing > 1)


@torch.no_grad()
def test_it_starts_as_fusedkv_lite_bit_for_bit() -> None:
    ours = zoo.initial("fusedkv", {}, num_layers=6)
    lite = zoo.build("fusedkv_lite", {}, {"num_layers": 6})
    theirs = ours.state_dict()
    lite.load_state_dict({name: theirs[name] for name in lite.state_dict()})
    tokens = some_tokens(2, 7)
    assert torch.equal(ours(tokens), lite(tokens))
    zoo.perturb(ours)
    assert (ours(tokens) - lite(tokens)).abs().max() > 1e-3


@torch.no_grad()
def test_fused_keys_turn_as_one() -> None:
    """RoPE and the sum can change places, so scores depend on distances alone."""
    decoder = fused(num_layers=6)
    size = decoder.shape.head_dim
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(2, 2, 5, size, generator=generator, dtype=torch.float64) for _ in range(2)]
    rotary = Rotary.at(torch.arange(3, 8)[None], size, 100.0, torch.float64, None)
    turned = [rotary.rotate(key) for key in keys]
    for step in fusing_steps(decoder):
        site = Site(step, step, "attention")
        before, _ = decoder.mixer.fuse_kv(site, keys, keys)
        after, _ = decoder.mixer.fuse_kv(site, turned, keys)
        assert_close(after, rotary.rotate(before), 1e-12)


def test_every_weight_of_a_sum_matters() -> None:
    """Each of a, b, c and d changes what is said, so none is read in another's place."""
    decoder, tokens = fused(num_layers=4), some_tokens(2, 6)
    with torch.no_grad():
        expected = decoder(tokens)
        for weights in decoder.mixer.parameters():
            for source in weights:
                kept = source.clone()
                source.neg_()
                assert (decoder(tokens) - expected).abs().max() > 1e-6
                source.copy_(kept)
        assert torch.equal(decoder(tokens), expected)


# The mechanism.


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_every_backend_attends_to_what_is_fused(backend: BackendName, window: int | None) -> None:
    eager = fused(num_layers=5, sliding_window=window, attention_backend="eager")
    other = fused(num_layers=5, sliding_window=window, attention_backend=backend)
    other.load_state_dict(eager.state_dict())
    tokens = some_tokens(2, 9)
    expected = eager(tokens)
    assert_close(other(tokens), expected)
    cache = other.new_cache(2)
    pieces = [other(piece, cache) for piece in tokens.split([4, 1, 1, 3], dim=1)]
    assert_close(torch.cat(pieces, dim=1), expected)
    padding = torch.tensor([0, 3])
    padded = other(tokens, left_padding=padding)
    assert_close(padded[1, 3:], other(tokens[1:, 3:])[0])


@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
@torch.no_grad()
def test_what_is_fused_is_stored_nowhere_and_follows_the_cache(fixed: bool) -> None:
    """Crop and reorder: the sums are those of what the slots hold now."""
    decoder, tokens = fused(num_layers=6), some_tokens(2, 9)
    cache = decoder.new_cache(2, 12 if fixed else None)
    decoder(tokens[:, :8], cache)
    cache.crop(5)
    assert_close(decoder(tokens[:, 5:], cache), decoder(tokens)[:, 5:])
    cache.reorder(torch.tensor([1, 1]))
    last = some_tokens(2, 1, seed=3)
    expected = decoder(torch.cat([tokens[[1, 1]], last], dim=1))[:, -1:]
    assert_close(decoder(last, cache), expected)


class Fusing(AttentionMixer):
    """Step 2 reads the keys of steps 0 and 1, and its own values."""

    name = "fusing"
    card = zoo.mixer_class("residual").card

    def plan(self) -> Plan:
        return replace(super().plan(), k_writes=(0, 1, None), k_reads=((0,), (1,), (0, 1)), v_writes=(0, 1, 2))

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        assert (site, len(keys), len(values)) == (Site(2, 2, "attention"), 2, 1)
        return keys[0] - keys[1], 2 * values[0]


class FusesNothing(AttentionMixer):
    """Plans that step 2 reads two slots, and has nothing to fuse them with."""

    name = "fuses_nothing"
    card = zoo.mixer_class("residual").card

    def plan(self) -> Plan:
        return replace(super().plan(), k_reads=((0,), (1,), (0, 2)))


@torch.no_grad()
def test_keys_alone_may_be_fused() -> None:
    decoder = zoo.perturb(zoo.decoder_of(Fusing, model={"num_layers": 3}))
    assert decoder.plan.k_slots == (0, 1)
    assert decoder.plan.v_slots == (0, 1, 2)
    tokens = some_tokens(2, 7)
    cache = decoder.new_cache(2)
    pieces = [decoder(piece, cache) for piece in tokens.split([3, 1, 3], dim=1)]
    assert_close(torch.cat(pieces, dim=1), decoder(tokens))
    assert cache.nbytes == 2 * 7 * decoder.plan.bytes_per_token(decoder.shape, torch.float64)


def test_a_plan_that_fuses_without_fuse_kv_is_refused() -> None:
    with pytest.raises(MixerError, match="'fuses_nothing' plans that step 2 reads several slots, but has no fuse_kv"):
        zoo.decoder_of(FusesNothing, model={"num_layers": 3})


def test_slots_that_cannot_be_fused_are_refused() -> None:
    plain = Plan.plain(range(3))
    with pytest.raises(MixerError, match="step 2 reads keys and values of different windows"):
        replace(plain, k_reads=((0,), (1,), (0, 2)), windows=(4, None, None))
    with pytest.raises(MixerError, match="step 1 reads k slot 2, which no step has written by then"):
        replace(plain, k_reads=((0,), (1, 2), (2,)))
    with pytest.raises(MixerError, match=r"step 2 reads v slots \(0, 0\); each may be there once"):
        replace(plain, v_reads=((0,), (1,), (0, 0)))
    with pytest.raises(MixerError, match="step 1 reads no k slot"):
        replace(plain, k_reads=((0,), (), (2,)))


def test_latents_cannot_be_fused() -> None:
    with pytest.raises(MixerError, match="it mixes the keys and values of each head, which are not stored there"):
        zoo.build("fusedkv", {}, LATENT)


def test_what_fuses_can_be_joined_with_a_mixer_of_the_stream_and_not_with_one_that_needs_its_own() -> None:
    decoder = zoo.perturb(zoo.build("compose", {"of": [{"name": "fusedkv"}, {"name": "denseformer"}]}, {}))
    assert decoder.plan.slots == zoo.build("fusedkv", {}, {}).plan.slots
    with torch.no_grad():
        tokens = some_tokens(2, 6)
        cache = decoder.new_cache(2)
        pieces = [decoder(piece, cache) for piece in tokens.split([2, 3, 1], dim=1)]
        assert_close(torch.cat(pieces, dim=1), decoder(tokens))
    with pytest.raises(MixerError, match="needs each layer's own keys and values"):
        zoo.build("compose", {"of": [{"name": "fusedkv"}, {"name": "depth_attention"}]}, {})
