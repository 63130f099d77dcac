"""One sublayer's connection to the streams, whatever its weights are made of.

Letters in shapes: B batch, T tokens, D hidden size, n streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo import ops


class WriteWeights(NamedTuple):
    """What happens to the streams after a sublayer.

    Attributes:
        mix: [..., n, n], new stream i takes ``mix[i, j]`` of stream j; None leaves them as they are.
        post: [..., n], how much of the output each stream gets.
    """

    mix: Tensor | None
    post: Tensor


class Connection(nn.Module, ABC):
    """What one sublayer reads of the streams [B, T, n, D] before it, and how it writes them."""

    def read(self, state: Tensor) -> Tensor:
        return ops.stream_read(state, self.read_weights(state))

    def write(self, state: Tensor, y: Tensor) -> Tensor:
        weights = self.write_weights(state)
        return ops.stream_write(state, weights.mix, weights.post, y)

    @abstractmethod
    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        """Give every parameter its initial value.

        Args:
            number: of the sublayer, from 0.
            alpha_init: of the scales of what depends on the token.
            generator: of all randomness.
            std: of the decoder's own initialisation.
        """

    @abstractmethod
    def read_weights(self, streams: Tensor) -> Tensor:
        """Of each stream in what the sublayer reads: [..., n]."""

    @abstractmethod
    def write_weights(self, streams: Tensor) -> WriteWeights:
        """Of mixing the streams and of adding the output to them."""

    @abstractmethod
    def flops(self) -> int:
        """Operations per token to make the weights."""
