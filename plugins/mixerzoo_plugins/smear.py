"""Smear (nanochat): each token's embedding gets a gated share of the embedding of the token before it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import Context, DecoderShape, Mixer, MixerCard, MixerConfig, Neutral, Plan, Site, Tail, hookimpl


class Config(MixerConfig):
    """Options of smear."""

    gate_channels: int = Field(24, ge=1, description="k: the gate looks at the first k channels (at most D).")


class Smear(Mixer[Config]):
    """A plain residual stream that starts from smeared embeddings. The state is the stream x [B, T, D].

    The cache keeps one embedding of each sequence: that of its last token, for the next one.
    """

    name = "smear"
    card = MixerCard(
        title="Smear",
        summary="Each token's embedding gets a gated share of the one before it.",
        paper="github.com/karpathy/nanochat",
        equation="x_t ← x_t + λ·σ(w·x_t[:k])·x_{t−1}  at the embedding; the first token has none before it",
        family="residual",
        acts_on="the embedding",
        parameters="1 + min(k, D), k = gate_channels",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e",
        neutral="at initialisation (λ = 0), bit for bit",
        neutral_settings=(Neutral(),),
        notes=(
            "Beside keys and values the cache keeps D·e bytes of each sequence, however long it is. A text begins "
            "anew after padding and in every packed document. nanochat norms its embeddings first, this decoder does "
            "not; w starts uniform in [0, 0.02], as there."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gate_channels = min(config.gate_channels, shape.hidden_size)
        self.gate = nn.Parameter(torch.empty(self.gate_channels))
        # Of shape [1]: fully_shard takes no scalars.
        self.scale = nn.Parameter(torch.empty(1))

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(1, self.shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.uniform_(self.gate, 0.0, 0.02, generator=generator)
        nn.init.zeros_(self.scale)

    def start(self, x: Tensor, context: Context) -> Tensor:
        (before,) = context.earlier
        gate = F.linear(x[..., : self.gate_channels], self.gate.unsqueeze(0)).sigmoid()
        return x + self.scale * gate * before

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y

    def finish(self, state: Tensor) -> Tensor:
        return state

    def flops_per_token(self) -> int:
        return 2 * self.gate_channels + 2 * self.shape.hidden_size


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Smear]
