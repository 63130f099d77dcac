"""Smear (nanochat): x_t = e_t + λ·σ(w·e_t[:k])·e_{t−1} of embeddings e, x_0 = e_0; then the plain residual stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.residual import in_flight_bytes, sources

CASES = (
    ZooCase("smear"),
    ZooCase("smear", {"gate_channels": 5}, LOOPED),
    ZooCase("smear", {"gate_channels": 3}, {**POST_ROPE, "sliding_window": 3, "sliding_layers": (1,)}),
)
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"gate_channels": st.sampled_from([1, 4, 24])})


class Smear(TokenMixer):
    """The residual stream from a smeared embedding.

    Args:
        embedding: e [D].
        gate: w [k].
        scale: λ.
    """

    def __init__(self, embedding: Tensor, gate: Tensor, scale: Tensor) -> None:
        super().__init__(embedding)
        self.embedding, self.gate, self.scale = embedding, gate, scale

    def follow(self, before: Sequence[Any]) -> None:
        if before:
            logit = self.gate @ self.embedding[: len(self.gate)]
            self.x = self.embedding + self.scale / (1 + torch.exp(-logit)) * before[-1].embedding


def begin(mixer: Mixer) -> Begin:
    state = mixer.state_dict()
    return lambda embedding, token: Smear(embedding, state["gate"], state["scale"][0])


def flops_per_token(mixer: Mixer) -> int:
    """The product of w with k channels; a multiplication and an addition of each channel."""
    channels = min(mixer.config.model_dump()["gate_channels"], mixer.shape.hidden_size)
    return 2 * channels + 2 * mixer.shape.hidden_size


def initial(mixer: Mixer) -> dict[str, float | Drawn]:
    """λ = 0, w uniform from 0 to 0.02."""
    return {"scale": 0.0, "gate": Drawn(0.02 / math.sqrt(12), 0.01)}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial)
