"""The norm without a gain."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.ops import forms


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) over the last dimension of x [..., D], computed in float32 (float64 for float64)."""
    exact = x.to(forms.exact_dtype(x))
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
