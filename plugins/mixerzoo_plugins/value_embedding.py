"""Value embeddings (nanochat, modded-nanogpt): some layers add a learned vector of the token to their values."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixerError,
    Neutral,
    ParameterRole,
    Plan,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of value embeddings."""

    every: int = Field(2, ge=1, description="p: every p-th layer has a table, counted back from the last.")
    gate: bool = Field(True, description="Scale the embedding by 2σ(W·x) per kv head, from what the layer reads.")
    gate_channels: int = Field(32, ge=1, description="c: the gate looks at the first c channels (at most D).")
    initial: Literal["zero", "normal"] = Field(
        "zero", description="Tables start at zero (a plain decoder), or are drawn like the decoder's weights."
    )

    @model_validator(mode="after")
    def _a_gate_looks_at_channels(self) -> Self:
        if not self.gate:
            self.refuse_idle("gate false", "set gate to true", "gate_channels")
        return self


class ValueEmbedding(AttentionMixer[Config]):
    """v ← v + gate·E_l[token], before the cache write.

    The memory is (tokens,), int64 [B, T], up to the last layer that has a table.
    """

    name = "value_embedding"
    card = MixerCard(
        title="Value embeddings",
        summary="Some layers add a learned, gated vector of the token itself to its value.",
        paper="",
        equation=(
            "v_b ← v_b + g_b·E_l[token]_b  for every p-th layer l and every kv head b\n"
            "g = 2σ(W_l·x̂[:c]),  x̂ = x / rms(x)  (gate: false: g = 1)"
        ),
        family="attention",
        acts_on="value, before the cache write",
        parameters="⌈L/p⌉·(V·G·d + G·min(c, D)), V rows of the embedding",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + 8 (the token's id)",
        neutral="initial: zero, at initialisation, bit for bit",
        neutral_settings=(Neutral(options={"initial": "zero"}),),
        notes=(
            "As in nanochat, whose repository defines it: the last layer always has a table, the gate starts at 1 "
            "(W = 0) and looks at 32 channels. nanochat draws the tables like value weights (initial: normal); "
            "tables of zeros are our default, so that training starts from a plain decoder. A mixer sees the "
            "stream and not the normed input, so the gate norms it itself, without a gain. In a looped decoder "
            "layers count unrolled, so every loop has tables of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.initial = config.initial
        self.gate_channels = min(config.gate_channels, shape.hidden_size)
        #: Steps that have a table, ascending.
        self.steps = tuple(range((shape.num_steps - 1) % config.every, shape.num_steps, config.every))
        width = shape.num_kv_heads * shape.head_dim
        #: step → E [V, G·d].
        self.tables = nn.ParameterDict(
            {str(step): nn.Parameter(torch.empty(shape.vocab_size, width)) for step in self.steps}
        )
        gated = self.steps if config.gate else ()
        #: step → W [G, c].
        self.gates = nn.ParameterDict(
            {str(step): nn.Parameter(torch.empty(shape.num_kv_heads, self.gate_channels)) for step in gated}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for table in self.tables.values():
            if self.initial == "zero":
                nn.init.zeros_(table)
            else:
                nn.init.normal_(table, std=std, generator=generator)
        for gate in self.gates.values():
            nn.init.zeros_(gate)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # Tables as the decoder's own embedding does; a gate's W is a projection, which starts at 0.
        return {name: ParameterRole(decay=True) for name, _ in self.named_parameters()}

    def remember(self, x: Tensor, context: Context) -> tuple[Tensor]:
        if context.tokens is None:
            raise MixerError("value_embedding looks tokens up by their ids, but the decoder was given embeddings")
        return (context.tokens,)

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=True)

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        step, k, v = call.site.step, call.k, call.v
        if step not in self.steps:
            return state, k, v
        (tokens,) = state.memory
        added = F.embedding(tokens, self.tables[str(step)]).unflatten(-1, (v.size(1), v.size(3))).transpose(1, 2)
        if str(step) in self.gates:
            stream = call.stream.v if isinstance(call.stream, AttentionInputs) else call.stream
            added = self._gate(step, stream).to(added.dtype) * added
        memory = state.memory if step < self.steps[-1] else ()
        return state._replace(memory=memory), k, v + added.to(v.dtype)

    def flops_per_token(self) -> int:
        width = self.shape.num_kv_heads * self.shape.head_dim
        # The gate: the norm (square, mean, scale), the projection, and one product for each channel.
        gate = 3 * self.shape.hidden_size + 2 * self.shape.num_kv_heads * self.gate_channels + width
        return len(self.steps) * (width + (gate if len(self.gates) else 0))

    def _gate(self, step: int, x: Tensor) -> Tensor:
        """2σ(W·x̂[:c]) [B, G, T, 1] of the stream x [B, T, D]."""
        inverse_rms = ops.inverse_rms(x, self.shape.norm_eps)
        normed = x[..., : self.gate_channels].to(inverse_rms.dtype) * inverse_rms.unsqueeze(-1)
        weight = self.gates[str(step)]
        logits = F.linear(normed.to(weight.dtype), weight).to(inverse_rms.dtype)
        return 2 * logits.sigmoid().transpose(1, 2).unsqueeze(-1)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [ValueEmbedding]
