"""Ladder residual (arXiv 2501.06589): sublayer i reads the embedding and the outputs y_1 … y_{i−2}, summed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.residual import flops_per_token, sources

CASES = (ZooCase("ladder"), ZooCase("ladder", model={**LOOPED, **POST_ROPE}))
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.just({})


class Ladder(TokenMixer):
    """All outputs so far, the embedding first."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__(embedding)
        self.outputs = [embedding]

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        waited_for = self.outputs[:-1] if len(self.outputs) > 1 else self.outputs
        return sum(waited_for[1:], start=waited_for[0])

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.outputs.append(y)

    def finish(self) -> Tensor:
        return sum(self.outputs[1:], start=self.outputs[0])


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: Ladder(embedding)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """What is read, and the newest output."""
    return 2 * mixer.shape.hidden_size * dtype.itemsize


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources)
