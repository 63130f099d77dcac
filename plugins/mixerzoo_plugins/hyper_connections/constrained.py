"""What mHC and its successors share: gates of sigmoids, and a doubly stochastic stream matrix. n streams of size D."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mixerzoo import ops
from mixerzoo_plugins.hyper_connections.connection import Connection, WriteWeights


class ConstrainedConnection(Connection):
    """mHC: pre = σ(·), post = 2σ(·), and a doubly stochastic stream matrix, of logits a·(W z) + b with z = RMSNorm(S).

    Args:
        size: D.
        num_streams: n.
        num_mix_logits: how many logits the stream matrix is made of.
        mixes: whether there is a stream matrix; else the rows of its logits are there, and nobody reads them.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, num_mix_logits: int, mixes: bool, eps: float) -> None:
        super().__init__()
        self.num_streams, self.mixes, self.eps = num_streams, mixes, eps
        self.norm = nn.Parameter(torch.empty(num_streams * size))
        self.projection = nn.Parameter(torch.empty(2 * num_streams + num_mix_logits, num_streams * size))
        self.pre = nn.Parameter(torch.empty(num_streams))
        self.post = nn.Parameter(torch.empty(num_streams))
        # Of shape [1]: fully_shard takes no scalars.
        self.scale_pre = nn.Parameter(torch.empty(1))
        self.scale_post = nn.Parameter(torch.empty(1))
        if mixes:
            self.mix = nn.Parameter(torch.empty(self.mix_shape()))
            self.scale_mix = nn.Parameter(torch.empty(1))

    @abstractmethod
    def mix_shape(self) -> tuple[int, ...]:
        """Shape of the stream matrix's logits."""

    @abstractmethod
    def matrix(self, logits: Tensor) -> Tensor:
        """Doubly stochastic [..., n, n] of logits [..., *mix_shape()]."""

    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        nn.init.ones_(self.norm)
        nn.init.normal_(self.projection, std=std, generator=generator)
        # σ of it is 1/n; at 1 itself nothing would learn.
        nn.init.constant_(self.pre, -math.log(self.num_streams - 1) if self.num_streams > 1 else math.log(99))
        nn.init.zeros_(self.post)
        for scale in (self.scale_pre, self.scale_post, *([self.scale_mix] if self.mixes else [])):
            nn.init.constant_(scale, alpha_init)

    def read_weights(self, streams: Tensor) -> Tensor:
        logits = self._logits(streams, 0, self.num_streams)
        return (self.scale_pre * logits + self.pre).sigmoid()

    def write_weights(self, streams: Tensor) -> WriteWeights:
        logits = self._logits(streams, self.num_streams, self._num_logits())
        post = 2 * (self.scale_post * logits[..., : self.num_streams] + self.post).sigmoid()
        if not self.mixes:
            return WriteWeights(None, post)
        moved = logits[..., self.num_streams :].unflatten(-1, self.mix_shape())
        return WriteWeights(self.matrix(self.scale_mix * moved + self.mix), post)

    def flops(self) -> int:
        rows, size = self._num_logits(), self.projection.size(1)
        # The norm before the read and again before the write, W, and each logit's three operations; σ and 2σ.
        return 4 * size + 2 * size * rows + 3 * rows + 3 * self.num_streams

    def _num_logits(self) -> int:
        """How many rows of W are read."""
        return len(self.projection) if self.mixes else 2 * self.num_streams

    def _logits(self, streams: Tensor, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of W z, [B, T, last − first]."""
        return ops.normed_product(streams.flatten(-2), self.projection[first:last], self.eps, self.norm)
