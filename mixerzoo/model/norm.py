"""Norms, and the precision in which they are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def compute_dtype(x: Tensor) -> torch.dtype:
    """Where norms, RoPE and softmax happen: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class RMSNorm(nn.Module):
    """x · weight / √(mean(x²) + eps) over the last dimension.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        exact = x.to(compute_dtype(x))
        scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)
