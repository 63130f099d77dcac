"""What goes wrong where there is a past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixerzoo import (
    AttentionCall,
    Context,
    DecoderShape,
    MixerConfig,
    Plan,
    Site,
    Tail,
)
from mixerzoo.errors import MixerError
from mixerzoo_plugins import depth_attention
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.residual import Residual
from wrong.basis import Fusing, Remembering, Scaled, caught_by, shifted


@caught_by("cached_decoding")
class MixesAfterTheCache(Residual):
    """Adds the value of the token before, which in decoding is in the cache and not in the call."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        k, v = call.k, call.v
        return state, k, v + 0.5 * torch.cat([torch.zeros_like(v[:, :, :1]), v[:, :, :-1]], dim=2)


@caught_by("cached_decoding")
class MixesRawValuesWhenDecoding(DepthAttention):
    """Keeps raw values for later layers where one token comes alone, mixed ones elsewhere."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, q, k, v = call.site, call.q, call.k, call.v
        new, k, mixed = super().mix_kv(state, call)
        if q.size(2) == 1 and new.kept and site.step in self.held[site.step]:
            new = new._replace(kept=(*new.kept[:-1], depth_attention.KeyValue(k, v)))
        return new, k, mixed


@caught_by("cached_decoding")
class TreatsFirstTokenOfCall(Residual):
    """Leaves the first token of each call alone."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + torch.cat([torch.zeros_like(y[:, :1]), y[:, 1:]], dim=1)


@caught_by("fixed_cache")
class ScalesByLength(Residual):
    """Divides by the number of tokens in the call."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y / y.size(1)


class Positions(Residual):
    """Counts tokens on the module; more than one at a time is taken for a new text."""

    position = 0

    def start(self, x: Tensor, context: Context) -> Tensor:
        first = 0 if x.size(1) > 1 else self.position
        self.position = first + x.size(1)
        positions = torch.arange(first, self.position, device=x.device, dtype=x.dtype)
        return x + 0.1 * positions[:, None]


@caught_by("crop")
class CountsPositions(Positions):
    """Its count does not go back with the cache."""


@caught_by("copy_and_reset")
class SharesItsCount(Positions):
    """Two texts share one count."""


@caught_by("reorder")
class RemembersRows(Residual):
    """Keeps the first token of each row on the module, where no reordering reaches it; see `Positions`."""

    first: Tensor | None = None

    def start(self, x: Tensor, context: Context) -> Tensor:
        if self.first is None or x.size(1) > 1:
            self.first = x[:, :1]
        return x + 0.5 * self.first


class RefusesNearlyAll(Residual):
    """Serves no decoder that is worth drawing, so no clause can be said to hold."""

    name = "refuses_nearly_all"

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if (shape.num_layers, shape.num_heads, shape.hidden_size, shape.head_dim) != (5, 6, 12, 8):
            raise MixerError("no such decoder")


class SharedKeys(Residual):
    """Correct: all steps attend with the first one's keys and values, so a prefill can stop there."""

    def plan(self) -> Plan:
        first = (0,) * self.shape.num_steps
        return Plan.borrowing(self.shape.order, first, first, (None,) * self.shape.num_steps)


@caught_by("last_token")
class KeepsTheFirstToken(SharedKeys):
    """Narrows its state to the wrong end."""

    card = replace(Residual.card, kv_bytes="2·G·d·e")

    def last_token(self, state: Tensor) -> Tensor:
        return state[:, :1]


@caught_by("last_token")
class NarrowsTooFar(Residual):
    """Keeps the last row in place of the last token; its own plan never asks, but a composition's may."""

    def last_token(self, state: Tensor) -> Tensor:
        return state[-1:]


class Weighed(NamedTuple):
    """A stream [B, T, D], and weights [1, sublayers] made once a forward."""

    x: Tensor
    weights: Tensor


@caught_by("last_token")
class CarriesItsWeights(Scaled):
    """Of a tensor of its state that has no tokens, the last weight stands for the last token."""

    def start(self, x: Tensor, context: Context) -> Any:
        return Weighed(x, self.scale.exp().unsqueeze(0))

    def read(self, state: Any, site: Site) -> Tensor:
        x: Tensor = state.x
        return x

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        return Weighed(state.x + state.weights[0, site.number % state.weights.size(1)] * y, state.weights)

    def finish(self, state: Any) -> Tensor:
        x: Tensor = state.x
        return x


@caught_by("cached_decoding")
class ShiftsWithinTheCall(Remembering):
    """Takes the embedding before from the call, where the first one has none, and leaves its tail alone."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + shifted(x) / 2


@caught_by("left_padding")
class ShiftsAcrossPadding(Remembering):
    """Its tail holds 1 for every token, so that whatever comes before the first one of a text counts too."""

    def tail(self, x: Tensor, context: Context) -> Tensor:
        return x + 1

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + torch.where(context.earlier[0] == 0, shifted(x), context.earlier[0] - 1) / 2


@caught_by("returns")
class KeepsLessThanItPlans(Remembering):
    """Gives vectors of another width than those that it asked room for."""

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(1, self.shape.hidden_size + 1))

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + context.earlier[0][..., : x.size(-1)] / 2


@caught_by("causality")
class FusesOverTheSequence(Fusing):
    """Centres the values that it fuses over all tokens, later ones among them."""

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        k, v = super().fuse_kv(site, keys, values)
        return k, v - v.mean(2, keepdim=True)


@caught_by("returns")
class FusesIntoOneHead(Fusing):
    """Gives all key/value heads the fused values of the first: attention broadcasts them."""

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        k, v = super().fuse_kv(site, keys, values)
        return k, v[:, :1]
