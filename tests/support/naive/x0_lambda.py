"""Residual and x0 lambdas (nanochat): before layer l, x ← λ_r,l·x + λ_0,l·x_0, where x_0 is the embedding."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (ZooCase("x0_lambda"), ZooCase("x0_lambda", model={**LOOPED, **POST_ROPE}))
OPTIONS = st.just({})


class X0Lambda(TokenMixer):
    """The stream, mixed with the embedding at the beginning of every layer.

    Args:
        embedding: of the token [D].
        residual: λ_r of each layer [L].
        x0: λ_0 of each layer [L].
    """

    def __init__(self, embedding: Tensor, residual: Tensor, x0: Tensor) -> None:
        super().__init__(embedding)
        self.embedding, self.residual, self.x0 = embedding, residual, x0

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        if branch == "attention":
            self.x = self.residual[step] * self.x + self.x0[step] * self.embedding
        return self.x


def begin(mixer: Mixer) -> Begin:
    state = mixer.state_dict()
    return lambda embedding, token: X0Lambda(embedding, state["residual_lambda"], state["x0_lambda"])


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and the embedding until the last layer begins."""
    return min(2, mixer.shape.num_steps) * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """Two products and a sum for every channel and layer."""
    return mixer.shape.num_steps * 3 * mixer.shape.hidden_size


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    return () if site.branch == "mlp" else (None,)


def initial(mixer: Mixer) -> dict[str, float]:
    return {"residual_lambda": 1.0, "x0_lambda": 0.0}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial)
