"""The norm without a gain, and what it divides by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) over the last dimension of x [..., D], computed in float32 (float64 for float64)."""
    exact = x.to(forms.exact_dtype(x))
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + eps) over the last dimension of x [..., D]: [...], in float32 (float64 for float64)."""
    if torch.compiler.is_compiling() or forms.choose([x], forms.Policy(few=0, compiled=False)) == "naive":
        return torch.rsqrt(x.to(forms.exact_dtype(x)).square().mean(-1) + eps)
    found: Tensor = _op(x, eps)
    return found


@torch.library.custom_op("mixerzoo::inverse_rms", mutates_args=())
def _op(x: Tensor, eps: float) -> Tensor:
    # One pass, and nothing of x's size in between.
    square = torch.linalg.vector_norm(x, dim=-1, dtype=forms.exact_dtype(x)).square()
    return torch.rsqrt(square / x.size(-1) + eps)


@_op.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=forms.exact_dtype(x))


def _keep(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    x, found = ctx.saved_tensors
    # `found` is an output, so both can be differentiated again.
    return ((grad * found.pow(3) / -x.size(-1)).unsqueeze(-1) * x).to(x.dtype), None


_op.register_autograd(_backward, setup_context=_keep)
