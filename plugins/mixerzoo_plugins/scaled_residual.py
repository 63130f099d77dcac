"""Scaled residual and highway gate: learned weights on the stream and on what a sublayer adds to it."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mixerzoo import (
    ConnectionMixer,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    ParameterRole,
    Site,
    hookimpl,
)


class Config(MixerConfig):
    """Options of the scaled residual."""

    weights: Literal["scalar", "vector"] = Field(
        "scalar", description="One weight for all channels, or one for each of them; likewise for the gate."
    )
    gate: Literal["none", "highway"] = Field(
        "none", description="none: α and β are parameters; highway: a gate of h and y shares out between them."
    )
    gate_bias: float | None = Field(
        None, description="Initial value of a learned bias inside the gate (highway only); default: no bias."
    )

    @model_validator(mode="after")
    def _a_gate_has_a_bias(self) -> Self:
        if self.gate == "none":
            self.refuse_idle("gate none", "set gate to highway", "gate_bias")
        return self


class Gate(nn.Module):
    """A connection that shares out between h and y by g = σ(W[h; y] + b).

    Args:
        size: D.
        num_gates: rows of W: 1, or D.
        bias: whether there is a b.
    """

    def __init__(self, size: int, num_gates: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_gates, 2 * size))
        self.bias = nn.Parameter(torch.empty(num_gates)) if bias else None

    def read(self, state: Tensor) -> Tensor:
        return state

    def write(self, state: Tensor, y: Tensor) -> Tensor:
        g: Tensor = self(state, y)
        return g * y + (1 - g) * state

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """g [B, T, 1] or [B, T, D] of h and y [B, T, D], in the dtype of h."""
        from_h, from_y = self.weight.chunk(2, dim=-1)
        logits = F.linear(h, from_h, self.bias) + F.linear(y, from_y)
        return logits.to(torch.promote_types(h.dtype, torch.float32)).sigmoid().to(h.dtype)


class Weights(NamedTuple):
    """α and β of a sublayer, [1] or [D] each."""

    alpha: Tensor
    beta: Tensor

    def read(self, state: Tensor) -> Tensor:
        return state

    def write(self, state: Tensor, y: Tensor) -> Tensor:
        return torch.addcmul(self.alpha * state, self.beta, y)


class ScaledResidual(ConnectionMixer[Config]):
    """A weighted sum in place of each residual addition. The state is the stream h [B, T, D]."""

    name = "scaled_residual"
    card = MixerCard(
        title="Scaled residual, highway",
        summary="Each residual addition becomes a weighted sum, with learned weights or with a highway gate.",
        paper="arXiv 1505.00387",
        equation="h ← α⊙h + β⊙y\nhighway: h ← g⊙y + (1 − g)⊙h,  g = σ(W[h; y] + b)",
        family="residual",
        acts_on="hidden states, after each sublayer",
        parameters="2L·2 (vector: 2L·2·D; highway: 2L·2·D scalar, 2L·2·D² vector, and the bias)",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e",
        neutral="gate none, at initialisation (α = β = 1), bit for bit",
        neutral_settings=(Neutral(options={"gate": "none", "gate_bias": None}),),
        notes=(
            "Every unrolled sublayer has weights of its own. The gate reads the stream as it is, without a norm; "
            "it has a bias only if asked for, and W starts like the decoder's projections, so that without one "
            "the gate starts near 1/2."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        num_sites = 2 * shape.num_steps
        self.has_gate = config.gate == "highway"
        num_weights = shape.hidden_size if config.weights == "vector" else 1
        if self.has_gate:
            self.gates = nn.ModuleList(
                Gate(shape.hidden_size, num_weights, config.gate_bias is not None) for _ in range(num_sites)
            )
        else:
            self.alpha = nn.ParameterList(torch.empty(num_weights) for _ in range(num_sites))
            self.beta = nn.ParameterList(torch.empty(num_weights) for _ in range(num_sites))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        if not self.has_gate:
            for weight in (*self.alpha, *self.beta):
                nn.init.ones_(weight)
            return
        for gate in self.gates:
            assert isinstance(gate, Gate)
            nn.init.normal_(gate.weight, std=std, generator=generator)
            if gate.bias is not None and self.config.gate_bias is not None:
                nn.init.constant_(gate.bias, self.config.gate_bias)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # A gate's W is a projection like any; α and β start at 1, the bias where the option says.
        return {f"gates.{i}.weight": ParameterRole(decay=True) for i in range(len(self.gates) if self.has_gate else 0)}

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x

    def connection(self, site: Site) -> Gate | Weights:
        number = site.number
        if not self.has_gate:
            return Weights(self.alpha[number], self.beta[number])
        gate = self.gates[number]
        assert isinstance(gate, Gate)
        return gate

    def finish(self, state: Tensor) -> Tensor:
        return state

    def flops_per_token(self) -> int:
        hidden, num_sites = self.shape.hidden_size, 2 * self.shape.num_steps
        if not self.has_gate:
            return 2 * hidden * num_sites
        num_gates = hidden if self.config.weights == "vector" else 1
        # W[h; y], then three operations a channel where a plain stream has one, and 1 − g.
        return num_sites * (4 * hidden * num_gates + 2 * hidden + 2 * num_gates)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [ScaledResidual]
