"""mHC-lite (arXiv 2601.05732): the stream matrix is a mean of all permutations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixerzoo_plugins.hyper_connections.constrained import ConstrainedConnection

#: It weighs n! permutations at every sublayer.
MAX_LITE_STREAMS = 5


class PermutationConnection(ConstrainedConnection):
    """mHC-lite: the stream matrix as a softmax-weighted mean of all permutation matrices.

    Args:
        size: D.
        num_streams: n.
        mixes: whether the streams are mixed at all.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, mixes: bool, eps: float) -> None:
        super().__init__(size, num_streams, math.factorial(num_streams) if mixes else 0, mixes, eps)

    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        super().reset(number, alpha_init, generator, std)
        if self.mixes:
            nn.init.constant_(self.mix, -8.0)
            self.mix[0] = 0.0  # the identity

    def mix_shape(self) -> tuple[int, ...]:
        return (math.factorial(self.num_streams),)

    def matrix(self, logits: Tensor) -> Tensor:
        return mean_of_permutations(logits.softmax(-1), self.num_streams)

    def flops(self) -> int:
        return super().flops() + (4 + self.num_streams) * math.factorial(self.num_streams) * self.mixes


def mean_of_permutations(weights: Tensor, size: int) -> Tensor:
    """Σ_k weights_k·P_k over the permutation matrices of ``size``, in lexicographic order (the identity is first).

    Args:
        weights: [..., size!].
        size: rows of the matrices.

    Returns:
        [..., size, size]; where the weights sum to 1, so do all rows and columns, up to rounding.
    """
    if size == 1:
        return weights.unsqueeze(-1)
    # A permutation is where the first row goes, and a permutation of the other rows over the columns left.
    by_first = weights.unflatten(-1, (size, -1))
    others = mean_of_permutations(by_first, size - 1)
    columns = []
    for column in range(size):
        left = [others[..., first, :, column - (first < column)] for first in range(size) if first != column]
        columns.append(torch.stack(left).sum(0))
    return torch.cat([by_first.sum(-1).unsqueeze(-2), torch.stack(columns, dim=-1)], dim=-2)
