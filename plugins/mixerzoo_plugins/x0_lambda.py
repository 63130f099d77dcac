"""Residual and embedding lambdas (nanochat, modded-nanogpt): each layer starts from λ_r·x + λ_0·x_0."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo import (
    ConnectionMixer,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    Site,
    hookimpl,
)


class State(NamedTuple):
    """The stream, and the embedding as long as a later layer mixes it in."""

    x: Tensor
    embedding: Tensor | None


class Lambdas(NamedTuple):
    """What follows a sublayer: its output is added, and before a layer the stream is scaled and the embedding joins.

    Attributes:
        stream_weight: λ_r of the layer that comes next, []; None where none does.
        embedding_weight: λ_0 of it, [].
        keeps_embedding: whether a later layer reads the embedding.
    """

    stream_weight: Tensor | None
    embedding_weight: Tensor | None
    keeps_embedding: bool

    def read(self, state: State) -> Tensor:
        return state.x

    def write(self, state: State, y: Tensor) -> State:
        return self.before_layer(state.x + y, state.embedding)

    def before_layer(self, x: Tensor, embedding: Tensor | None) -> State:
        """The state at the beginning of the layer, of the stream x and the embedding [B, T, D]."""
        if self.stream_weight is not None and self.embedding_weight is not None and embedding is not None:
            x = torch.addcmul(self.stream_weight * x, self.embedding_weight, embedding)
        return State(x, embedding if self.keeps_embedding else None)


class X0Lambda(ConnectionMixer):
    """Before each layer the stream is scaled and the embedding is mixed in again."""

    name = "x0_lambda"
    card = MixerCard(
        title="Residual and x0 lambdas",
        summary="Before each layer, two learned scalars scale the stream and mix the embedding in again.",
        paper="github.com/karpathy/nanochat",
        equation="x ← λ_r·x + λ_0·x_0  before each layer, x_0 the embedding",
        family="residual",
        acts_on="hidden states, before each layer",
        parameters="2·L",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="2·D·e",
        neutral="at initialisation (λ_r = 1, λ_0 = 0), bit for bit",
        neutral_settings=(Neutral(),),
        notes=(
            "x_0 is what the decoder feeds to its first layer; nanochat norms its embeddings first, this decoder "
            "does not. In a looped decoder every unrolled layer has lambdas of its own. Started at (1, 0), as "
            "nanochat first did; its later versions start them elsewhere, by depth."
        ),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.residual_lambda = nn.Parameter(torch.empty(shape.num_steps))
        self.x0_lambda = nn.Parameter(torch.empty(shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.ones_(self.residual_lambda)
        nn.init.zeros_(self.x0_lambda)

    def start(self, x: Tensor, context: Context) -> State:
        return self._before(0).before_layer(x, x)

    def connection(self, site: Site) -> Lambdas:
        if site.branch == "attention":
            return Lambdas(None, None, keeps_embedding=site.step + 1 < self.shape.num_steps)
        return self._before(site.step + 1)

    def finish(self, state: State) -> Tensor:
        return state.x

    def flops_per_token(self) -> int:
        return 3 * self.shape.hidden_size * self.shape.num_steps

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return (None,) if site.branch == "attention" else ()

    def _before(self, step: int) -> Lambdas:
        """What happens before a layer."""
        if step == self.shape.num_steps:
            return Lambdas(None, None, keeps_embedding=False)
        return Lambdas(self.residual_lambda[step], self.x0_lambda[step], step + 1 < self.shape.num_steps)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [X0Lambda]
