"""Mixers for the tests: they use the parts of the decoder that no registered mixer uses."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    Context,
    DepthEntries,
    Mixer,
    MixerConfig,
    Plan,
    Site,
    Tail,
)
from mixerzoo_plugins.residual import Residual


class PlannedConfig(MixerConfig):
    """A plan, given whole; see `Plan`."""

    k_slot: tuple[int, ...]
    v_slot: tuple[int, ...]
    windows: tuple[int | None, ...]


class Planned(Residual):
    """The residual stream with any slots and windows."""

    name = "planned"
    Config = PlannedConfig

    def plan(self) -> Plan:
        return Plan.borrowing(self.shape.order, self.config.k_slot, self.config.v_slot, self.config.windows)


class SeparateConfig(MixerConfig):
    """How far the inputs of k and v go back to the embedding."""

    back: float = Field(0.5)


class SeparateState(NamedTuple):
    """The stream and the embedding [B, T, D]."""

    x: Tensor
    embedding: Tensor


class Separate(Mixer[SeparateConfig]):
    """Queries read the stream x, values the embedding e, keys x + back · e."""

    name = "separate"
    Config = SeparateConfig
    card = Residual.card

    def start(self, x: Tensor, context: Context) -> SeparateState:
        return SeparateState(x, x)

    def read(self, state: SeparateState, site: Site) -> Tensor | AttentionInputs:
        if site.branch == "mlp":
            return state.x
        return AttentionInputs(q=state.x, k=state.x + self.config.back * state.embedding, v=state.embedding)

    def write(self, state: SeparateState, site: Site, y: Tensor) -> SeparateState:
        return SeparateState(state.x + y, state.embedding)

    def finish(self, state: SeparateState) -> Tensor:
        return state.x


class RawMixed(AttentionMixer):
    """k + k_before / 2 and v − v_before / 2, of the raw projections of the step before."""

    name = "raw_mixed"
    card = Residual.card

    def mix_raw_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        raw = k, v = call.k, call.v
        if state.memory:
            k, v = k + state.memory[0] / 2, v - state.memory[1] / 2
        return state._replace(memory=raw), k, v


class Joined(NamedTuple):
    """Keys, values [B, G, T, d] of the steps so far, and the first d channels of each MLP's output [B, 1, T, d]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    light: tuple[Tensor, ...]


class DepthJoined(AttentionMixer):
    """Keys and values of earlier steps, and of the MLPs' outputs, join the softmax."""

    name = "depth_joined"
    card = Residual.card

    def remember(self, x: Tensor, context: Context) -> Joined:
        return Joined((), (), ())

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        k, v = call.k, call.v
        keys, values, light = state.memory
        return state._replace(memory=Joined((*keys, k), (*values, v), light)), k, v

    def absorb(self, state: AttentionState, site: Site, y: Tensor) -> Joined:
        memory: Joined = state.memory
        if site.branch == "attention":
            return memory
        return memory._replace(light=(*memory.light, y[:, None, :, : self.shape.head_dim]))

    def depth_kv(self, state: AttentionState, call: AttentionCall) -> DepthEntries | None:
        if not call.site.step:
            return None
        keys, values, light = state.memory
        light = tuple(x.expand(-1, self.shape.num_kv_heads, -1, -1) for x in light)
        k = torch.stack([*keys[:-1], *map(call.rotate, light)], dim=3)
        return DepthEntries(k, torch.stack([*values[:-1], *light], dim=3))


class Tailed(Residual):
    """The embedding and, in its last 3 channels, w_i · σ of the last 3 channels of those 1, 2 and 3 tokens before."""

    name = "tailed"
    weights = (0.7, -0.5, 0.3)
    width = 3

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(len(self.weights), self.width))

    def tail(self, x: Tensor, context: Context) -> Tensor:
        assert not context.earlier
        return x[..., -self.width :].sigmoid()

    def start(self, x: Tensor, context: Context) -> Tensor:
        earlier = sum(weight * vector for weight, vector in zip(self.weights, context.earlier, strict=True))
        return torch.cat([x[..., : -self.width], x[..., -self.width :] + earlier], dim=-1)


class Rewriting(AttentionMixer):
    """All runs of a layer write one slot: k + k_before / 2 and v − v_before / 2, of the run before.

    The memory is (k, v) of the latest run of each layer that has run, by layer.
    """

    name = "rewriting"
    card = replace(
        Residual.card,
        title="Rewriting",
        summary="All runs of a layer write one slot of the cache: each a mix of its own and what the run before wrote.",
        equation="k ← k + k_before/2, v ← v − v_before/2",
        family="cache",
        acts_on="key and value, before the cache write",
        kv_bytes="2·P·G·d·e",
        in_flight_bytes="(D + 2·P·G·d)·e",
        neutral="",
        neutral_settings=(),
    )

    def plan(self) -> Plan:
        plan = super().plan()
        slots = tuple(plan.order.index(layer) for layer in plan.order)
        reads = tuple((slot,) for slot in slots)
        return replace(plan, k_writes=slots, v_writes=slots, k_reads=reads, v_reads=reads, needs_own_kv=True)

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        k, v, layer = call.k, call.v, call.site.layer
        memory = list(state.memory) + [None] * (self.shape.num_layers - len(state.memory))
        if memory[layer] is not None:
            k, v = k + memory[layer][0] / 2, v - memory[layer][1] / 2
        memory[layer] = (k, v)
        return state._replace(memory=tuple(memory)), k, v

    def flops_per_token(self) -> int:
        shape = self.shape
        return 4 * (shape.num_steps - shape.num_layers) * shape.num_kv_heads * shape.head_dim


MIXERS: dict[str, type[Mixer]] = {
    mixer.name: mixer for mixer in (Planned, Separate, RawMixed, DepthJoined, Tailed, Rewriting)
}
