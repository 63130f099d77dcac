"""A tail of three vectors that are not embeddings: `adhoc.Tailed`.

x = e, but for its last three channels: there x_t = e_t + 0.7·σ(e_{t−1}) − 0.5·σ(e_{t−2}) + 0.3·σ(e_{t−3}), as far as
there are such tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (
    ZooCase("tailed"),
    ZooCase("tailed", model={**LOOPED, **POST_ROPE, "sliding_window": 5, "sliding_layers": (1,)}),
)


class Tailed(TokenMixer):
    """The residual stream from a sum of embeddings."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__(embedding)
        self.vector = 1 / (1 + torch.exp(-embedding[-3:]))

    def follow(self, before: Sequence[Any]) -> None:
        added = torch.zeros_like(self.vector)
        for weight, other in zip((0.7, -0.5, 0.3), reversed(before), strict=False):
            added = added + weight * other.vector
        self.x = torch.cat([self.x[:-3], self.x[-3:] + added])


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: Tailed(embedding)


REFERENCE = Reference(begin)
