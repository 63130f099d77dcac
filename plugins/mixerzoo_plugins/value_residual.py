"""Value residual, ResFormer (arXiv 2410.17897): every layer's value is mixed with the first layer's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    AttentionState,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixerError,
    MixingWeights,
    Neutral,
    Plan,
    Site,
    hookimpl,
)


class Config(MixerConfig):
    """Options of the value residual."""

    weights: Literal["fixed", "learned"] = Field(
        "learned", description="fixed: λ1 and λ2 stay what they are; learned: every layer learns its own two."
    )
    first: float = Field(0.5, description="λ1: weight of the first layer's value; what it starts at if learned.")
    own: float = Field(0.5, gt=0, description="λ2: weight of the layer's own value; what it starts at if learned.")
    gate: bool = Field(False, description="Scale the first layer's value by 2σ(θ), one θ per layer and kv head.")


class ValueResidual(AttentionMixer[Config]):
    """v_l ← λ1·v_0 + λ2·v_l, of the new tokens only and before the cache write.

    The memory is (v_0,), [B, G, T, d], from the first layer up to the last.
    """

    name = "value_residual"
    card = MixerCard(
        title="Value residual (ResFormer)",
        summary="Every layer attends over a mix of its own values and the first layer's.",
        paper="arXiv 2410.17897",
        equation="v_l ← λ1_l·v_0 + λ2_l·v_l  for l > 0\ngate: λ1_l·2σ(θ_{l,b}) per kv head b in place of λ1_l",
        family="attention",
        acts_on="value, before the cache write",
        parameters="learned: 2·(L−1); gate: G·(L−1) more; fixed: 0",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + G·d·e",
        neutral="first: 0.0 and own: 1.0, bit for bit",
        neutral_settings=(
            Neutral(options={"first": 0.0, "own": 1.0, "gate": False}),
            Neutral(options={"weights": "learned", "first": 0.0, "own": 1.0, "gate": True}),
        ),
        notes=(
            "The defaults are the paper's learned variant, which starts at ½ and ½; fixed ½ and ½ is its identity "
            "variant. The gate is ours to choose: it does not depend on the token, and at θ = 0 it changes "
            "nothing. v_0 is the value of the first unrolled step; in a looped decoder every step after it has "
            "weights of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if config.gate and config.weights == "fixed" and config.first == 0:
            raise MixerError(
                "value_residual: the gate scales the first layer's value, which has weight 0 for good; "
                "set first to another number, weights to 'learned', or gate to false"
            )
        self.first, self.own = config.first, config.own
        self.last_step = shape.num_steps - 1
        later = range(1, shape.num_steps) if config.weights == "learned" else ()
        #: step → (λ1, λ2).
        self.weights = nn.ParameterDict({str(step): nn.Parameter(torch.empty(2)) for step in later})
        gated = range(1, shape.num_steps) if config.gate else ()
        #: step → θ [G].
        self.gates = nn.ParameterDict({str(step): nn.Parameter(torch.empty(shape.num_kv_heads)) for step in gated})

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.constant_(weight[:1], self.first)
            nn.init.constant_(weight[1:], self.own)
        for gate in self.gates.values():
            nn.init.zeros_(gate)

    def plan(self) -> Plan:
        # A gate has a number for each head.
        return replace(super().plan(), needs_own_kv=True, heads_apart=not self.config.gate)

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        site, v = call.site, call.v
        if site.step == 0:
            first = v
        else:
            (first,) = state.memory
            v = self._mix(site.step, first, v)
        return state._replace(memory=(first,) if site.step < self.last_step else ()), call.k, v

    def mixing_weights(
        self, state: AttentionState, site: Site, call: AttentionCall | None = None
    ) -> MixingWeights | None:
        if call is None or site.step == 0:
            return None
        (first,), v = state.memory, call.v
        # What the mix gives for ones is what it weighs by.
        none, one = torch.zeros_like(v), torch.ones_like(v)
        weights = [self._mix(site.step, *pair)[..., 0] for pair in ((one, none), (none, one))]
        return MixingWeights(torch.stack(weights, dim=-1), (first, v))

    def flops_per_token(self) -> int:
        per_element = 4 if len(self.gates) else 3
        return per_element * self.shape.num_kv_heads * self.shape.head_dim * self.last_step

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or site.step == 0:
            return ()
        return (self.shape.sites()[0], site)

    def _mix(self, step: int, first: Tensor, v: Tensor) -> Tensor:
        if str(step) in self.gates:
            theta = self.gates[str(step)]
            gate = 2 * theta.to(torch.promote_types(theta.dtype, torch.float32)).sigmoid()
            first = gate.to(v.dtype)[:, None, None] * first
        if str(step) in self.weights:
            weight = self.weights[str(step)].to(v.dtype)
            first, v = weight[0] * first, weight[1] * v
            return first + v
        return self.first * first + self.own * v


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [ValueResidual]
