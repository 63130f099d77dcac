"""Hyper-Connections (arXiv 2409.19606): weights without constraint. n streams of size D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo import ops
from mixerzoo_plugins.hyper_connections.connection import Connection, WriteWeights


class FreeConnection(Connection):
    """HC: weights without constraint, static + s·tanh(norm(S)·W).

    Args:
        size: D.
        num_streams: n.
        dynamic: whether there is the second term.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, dynamic: bool, eps: float) -> None:
        super().__init__()
        self.pre = nn.Parameter(torch.empty(num_streams))
        self.post = nn.Parameter(torch.empty(num_streams))
        self.mix = nn.Parameter(torch.empty(num_streams**2))
        self.dynamic, self.eps = dynamic, eps
        if dynamic:
            # Of each stream: its weight in the read, its weight of the output, its part in each new stream.
            self.projection = nn.Parameter(torch.empty(2 + num_streams, size))
            # Of shape [1]: fully_shard takes no scalars.
            self.scale_mix = nn.Parameter(torch.empty(1))
            self.scale_post = nn.Parameter(torch.empty(1))

    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.pre)
        self.pre[number % len(self.pre)] = 1.0
        nn.init.ones_(self.post)
        nn.init.eye_(self.mix.view(len(self.pre), -1))
        if self.dynamic:
            nn.init.zeros_(self.projection)
            nn.init.constant_(self.scale_mix, alpha_init)
            nn.init.constant_(self.scale_post, alpha_init)

    def read_weights(self, streams: Tensor) -> Tensor:
        if not self.dynamic:
            return self.pre
        moved = ops.normed_product(streams, self.projection[:1], self.eps).tanh().squeeze(-1)
        return self.pre + self.scale_mix * moved

    def write_weights(self, streams: Tensor) -> WriteWeights:
        static = self.mix.view(len(self.pre), -1)
        if not self.dynamic:
            return WriteWeights(static, self.post)
        moved = ops.normed_product(streams, self.projection[1:], self.eps).tanh()
        # Stream j's parts in the new streams stand in its row; they are column j of the matrix.
        mix = static + self.scale_mix * moved[..., 1:].transpose(-1, -2)
        return WriteWeights(mix, self.post + self.scale_post * moved[..., 0])

    def flops(self) -> int:
        if not self.dynamic:
            return 0
        rows, size = self.projection.shape
        # The norm before the read and again before the write, W, and four operations a weight.
        return len(self.pre) * (4 * size + 2 * size * rows + 4 * rows)
