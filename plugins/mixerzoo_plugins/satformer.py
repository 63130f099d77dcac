"""SATFormer (arXiv 2605.03953): every layer decides by token and head how much of the first layer's value it adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixingWeights,
    Neutral,
    ParameterRole,
    Plan,
    Site,
    hookimpl,
)


class Config(MixerConfig):
    """Options of SATFormer."""

    gate: Literal["sigmoid", "relu"] = Field(
        "sigmoid", description="What makes a gate of W·x: sigmoid, or relu as the authors' code does by default."
    )


class SATFormer(AttentionMixer[Config]):
    """v_l ← v_l + g_l(x)·v_0, of the new tokens only and before the cache write.

    The memory is (v_0,), [B, G, T, d], from the first layer up to the last.
    """

    name = "satformer"
    card = MixerCard(
        title="SATFormer",
        summary="Every layer adds the first layer's values to its own, gated by token and head.",
        paper="arXiv 2605.03953",
        equation="v_b^l ← v_b^l + g_b·v_b^0  for l > 0 and every kv head b\ng = σ(W_l·x),  x the layer's normed input",
        family="attention",
        acts_on="value, before the cache write",
        parameters="G·D·(L−1)",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + G·d·e",
        neutral="one layer, bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "The gate is σ, as the paper writes it; the authors' code has several and takes relu if none is named. W "
            "has no bias and starts like the decoder's projections. Where queries, keys and values have inputs of "
            "their own, the gate reads that of the values. v_0 is the value of the first unrolled step; in a looped "
            "decoder every step after it has a gate of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.last_step = shape.num_steps - 1
        later, size = range(1, shape.num_steps), (shape.num_kv_heads, shape.hidden_size)
        #: step → W [G, D].
        self.gates = nn.ParameterDict({str(step): nn.Parameter(torch.empty(size)) for step in later})

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=True)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for gate in self.gates.values():
            nn.init.normal_(gate, std=std, generator=generator)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # Projections of the hidden state, as the attention's own.
        return {name: ParameterRole(decay=True) for name, _ in self.named_parameters()}

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        step, v = call.site.step, call.v
        first = v
        if step:
            (first,) = state.memory
            v = v + self._gate(call) * first
        return state._replace(memory=(first,) if step < self.last_step else ()), call.k, v

    def mixing_weights(
        self, state: AttentionState, site: Site, call: AttentionCall | None = None
    ) -> MixingWeights | None:
        if call is None or site.step == 0:
            return None
        gate = self._gate(call)
        return MixingWeights(torch.cat([gate, torch.ones_like(gate)], dim=-1), (*state.memory, call.v))

    def flops_per_token(self) -> int:
        return 2 * self.shape.num_kv_heads * (self.shape.hidden_size + self.shape.head_dim) * self.last_step

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return (self.shape.sites()[0], site) if site.branch == "attention" and site.step else ()

    def _gate(self, call: AttentionCall) -> Tensor:
        """g [B, G, T, 1]."""
        x = call.x.v if isinstance(call.x, AttentionInputs) else call.x
        logits = F.linear(x, self.gates[str(call.site.step)])
        gate = logits.sigmoid() if self.config.gate == "sigmoid" else logits.relu()
        return gate.transpose(1, 2).unsqueeze(-1)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [SATFormer]
