"""mHC (arXiv 2512.24880): a stream matrix that Sinkhorn makes nearly doubly stochastic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixerzoo import ops
from mixerzoo_plugins.hyper_connections.constrained import ConstrainedConnection


class SinkhornConnection(ConstrainedConnection):
    """mHC: the stream matrix by alternately dividing rows and columns by their sums. Of one stream it is 1.

    Args:
        size: D.
        num_streams: n.
        iterations: how often.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, iterations: int, eps: float) -> None:
        # With one stream W has the row of the matrix's only logit all the same, as checkpoints of the reference do.
        super().__init__(size, num_streams, num_streams**2, num_streams > 1, eps)
        self.iterations = iterations

    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        super().reset(number, alpha_init, generator, std)
        if self.mixes:
            nn.init.constant_(self.mix, math.log(0.01 / (self.num_streams - 1)))
            self.mix.fill_diagonal_(math.log(0.99))

    def mix_shape(self) -> tuple[int, ...]:
        return (self.num_streams, self.num_streams)

    def matrix(self, logits: Tensor) -> Tensor:
        return ops.sinkhorn(logits, self.iterations)

    def flops(self) -> int:
        return super().flops() + 4 * self.num_streams**2 * (1 + self.iterations) * self.mixes
