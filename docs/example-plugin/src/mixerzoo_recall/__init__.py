"""Recall: after a block, the stream is reminded of the embedding, with two learned weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import Context, DecoderShape, Mixer, MixerCard, MixerConfig, Neutral, Site, hookimpl


class Config(MixerConfig):
    """Options of Recall."""

    period: int = Field(1, ge=1, description="p: remind after every p-th block only.")
    initial: float = Field(0.0, ge=-1, le=1, description="What b starts at; 0 starts as a plain decoder.")


class State(NamedTuple):
    """The stream and the embedding, both [B, T, D]."""

    x: Tensor
    embedding: Tensor


class Recall(Mixer[Config]):
    """x ← a·x + b·x_0 after a block. Depth t counts unrolled blocks from 1."""

    name = "recall"
    api_version = 2
    card = MixerCard(
        title="Recall",
        summary="After a block, the stream becomes a learned mix of itself and the embedding.",
        paper="",
        equation="x ← block_t(x)\nx ← a_t·x + b_t·x_0  if t mod p = 0",
        family="depth-weighted",
        acts_on="hidden states, after each block",
        parameters="2·⌊L/period⌋",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="2·D·e",
        neutral="at initialisation with initial: 0.0 (a = 1, b = 0), bit for bit",
        neutral_settings=(Neutral(options={"initial": 0.0}),),
        notes="In a looped decoder t counts unrolled blocks, so every loop has weights of its own.",
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.initial = config.initial
        #: depth t → (a, b), where the mixer acts.
        self.weights = nn.ParameterDict(
            {str(t): nn.Parameter(torch.empty(2)) for t in range(config.period, shape.num_steps + 1, config.period)}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.ones_(weight[:1])
            nn.init.constant_(weight[1:], self.initial)

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, x)

    def read(self, state: State, site: Site) -> Tensor:
        return state.x

    def write(self, state: State, site: Site, y: Tensor) -> State:
        x = state.x + y
        if self._acts(site):
            a, b = self.weights[str(site.step + 1)]
            x = a * x + b * state.embedding
        return State(x, state.embedding)

    def finish(self, state: State) -> Tensor:
        return state.x

    def flops_per_token(self) -> int:
        # Two multiplications and an addition for each channel.
        return 3 * self.shape.hidden_size * len(self.weights)

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return (None,) if self._acts(site) else ()

    def _acts(self, site: Site) -> bool:
        return site.branch == "mlp" and str(site.step + 1) in self.weights


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Recall]
