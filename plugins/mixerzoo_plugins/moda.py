"""MoDA, mixture-of-depths attention (arXiv 2603.15619): one softmax over the sequence and over the same token's
keys and values in earlier layers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    DepthEntries,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    ParameterRole,
    Plan,
    Site,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of MoDA."""

    mlp: bool = Field(True, description="MLPs give keys and values too, through a light projection of their input.")


class KeyValue(NamedTuple):
    """Keys and values [B, G, T, d] of one sublayer."""

    k: Tensor
    v: Tensor


class Memory(NamedTuple):
    """What the sublayers so far have given: keys with RoPE, those of the newest MLP from the next step on."""

    attention: tuple[KeyValue, ...] = ()
    mlp: tuple[KeyValue, ...] = ()


class LightProjection(nn.Module):
    """Keys and values of an MLP: a projection of its normed input, and a norm of each key head.

    Args:
        shape: the decoder's sizes.
    """

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.heads, self.eps = shape.num_kv_heads, shape.norm_eps
        self.weight = nn.Parameter(torch.empty(2 * shape.num_kv_heads * shape.head_dim, shape.hidden_size))
        self.key_gain = nn.Parameter(torch.empty(shape.head_dim))

    def forward(self, x: Tensor) -> KeyValue:
        """From the MLP's input x [B, T, D]."""
        # Projected apart, so that neither keeps the other's memory.
        parts = ops.normed_linear(x, self.weight.chunk(2), self.eps)
        k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return KeyValue(ops.unit_rms(k, self.eps) * self.key_gain.to(k.dtype), v)


class Moda(AttentionMixer[Config]):
    """Each query attends, in one softmax, over the tokens so far and over its own token's earlier layers."""

    name = "moda"
    card = MixerCard(
        title="Mixture-of-Depths Attention",
        summary="One softmax over the tokens so far and over the keys of the same token in earlier layers.",
        paper="arXiv 2603.15619",
        equation=(
            "o_t^l = Σ_{i ≤ t} α_i·v_i^l + Σ_{j < l} (β_j·v_t^j + γ_j·v_t^{MLP j})\n"
            "(α, β, γ) = softmax(q_t^l·[k_i^l ; k_t^j ; k_t^{MLP j}] / √d)\n"
            "(k, v)^{MLP j} = W_j·RMSNorm(input of MLP j)"
        ),
        family="attention",
        acts_on="the softmax over the sequence",
        parameters="(2·G·d·D + d)·(L−1) (mlp: false: 0)",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + 2·G·d·e·2·(L−1) (mlp: false: half of the entries)",
        neutral="one layer (no entries), bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "Attention over the sequence is PyTorch's own, and its log-sum-exp is merged with the entries. Entries of "
            "attention are the keys as their own layer reads them, after its norm and RoPE, and the keys of an "
            "MLP get the token's RoPE, so a score along depth does not depend on the position; the authors' code "
            "leaves RoPE out of depth keys and norms them in the reading layer. The paper puts the MLP's "
            "projection on its input; a mixer sees the stream before the layer's norm, so it norms without a gain "
            "(the projection can take it up), and norms key heads with a gain. The last MLP has no projection: "
            "nobody would read it. In a looped decoder every unrolled step gives entries, and every step's MLP "
            "has a projection of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.last_step = shape.num_steps - 1
        self.reads_stream = config.mlp
        steps = range(self.last_step) if config.mlp else ()
        #: step → the projection of its MLP's input.
        self.projections = nn.ModuleDict({str(step): LightProjection(shape) for step in steps})

    def plan(self) -> Plan:
        plan = replace(super().plan(), needs_own_kv=True)
        # One layer has no earlier ones, and need not forgo its attention backend.
        return plan if self.last_step else replace(plan, hooks=plan.hooks - {"depth_kv"})

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for projection in self.projections.values():
            assert isinstance(projection, LightProjection)
            nn.init.normal_(projection.weight, std=std, generator=generator)
            nn.init.ones_(projection.key_gain)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # Projections of keys and values as the attention's own; the gain is that of a norm.
        return {f"projections.{step}.weight": ParameterRole(decay=True, matrix=True) for step in self.projections}

    def remember(self, x: Tensor, context: Context) -> Memory:
        return Memory()

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        attention, mlp = state.memory
        if mlp:
            # Once for all that read it: a token's RoPE is the same in all layers.
            *others, newest = mlp
            mlp = (*others, newest._replace(k=call.rotate(newest.k)))
        if call.site.step < self.last_step:
            attention = (*attention, KeyValue(call.k, call.v))
        return state._replace(memory=Memory(attention, mlp)), call.k, call.v

    def depth_kv(self, state: AttentionState, call: AttentionCall) -> DepthEntries | None:
        step = call.site.step
        if step == 0:
            return None
        keys, values = zip(*state.memory.attention[:step], *state.memory.mlp, strict=True)
        return DepthEntries(keys, values)

    def absorb(self, state: AttentionState, site: Site, y: Tensor) -> Memory:
        memory: Memory = state.memory
        if site.step == self.last_step:
            return Memory()
        if site.branch == "attention" or not len(self.projections):
            return memory
        return memory._replace(mlp=(*memory.mlp, self.projections[str(site.step)](state.x)))

    def flops_per_token(self) -> int:
        width = self.shape.num_kv_heads * self.shape.head_dim
        steps, projected = range(1, self.last_step + 1), bool(len(self.projections))
        # Projections with their norms and the RoPE of their keys; scores and mixes of every query head.
        light = len(self.projections) * (4 * self.shape.hidden_size * width + 3 * self.shape.hidden_size + 7 * width)
        attended = sum(4 * self.shape.num_heads * self.shape.head_dim * step * (1 + projected) for step in steps)
        return light + attended

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp":
            return ()
        return self.shape.sites()[: 2 * site.step : 1 if len(self.projections) else 2]


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Moda]
