"""Linear layers of RMS-normed vectors, which are normed again in the backward in place of being kept.

Letters in shapes: D size of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.ops import forms
from mixerzoo.ops.unit_rms import unit_rms

#: Products of matrices are the vendor's, on CUDA too. Compiled, the equation is fused and recomputed.
POLICY = forms.Policy(few=0, compiled=False)


def normed_linear(x: Tensor, weights: Sequence[Tensor], eps: float) -> tuple[Tensor, ...]:
    """W·x / √(mean(x²) + eps) of each W: the norm in float32 (float64 for float64), the products as linear layers'.

    Args:
        x: [..., D].
        weights: each W [rows, D].
        eps: of the norm.

    Returns:
        For each W [..., rows], in the dtype of x, or in autocast's.
    """
    # Autocast casts what a linear layer multiplies, and leaves a node of ours alone.
    device, dtype = x.device.type, x.dtype
    if not x.is_meta and torch.is_autocast_enabled(device) and torch.float64 not in (dtype, weights[0].dtype):
        dtype = torch.get_autocast_dtype(device)
    one_dtype = dtype != x.dtype or all(weight.dtype == dtype for weight in weights)
    if not one_dtype or forms.choose([x], POLICY, weights) == "naive":
        normed = unit_rms(x, eps)
        return tuple(F.linear(normed, weight) for weight in weights)
    return tuple(_op(x, [weight.to(dtype) for weight in weights], eps))


def _naive(x: Tensor, weights: Sequence[Tensor], eps: float) -> list[Tensor]:
    """The equation, in the dtype of the weights."""
    normed = unit_rms(x, eps).to(weights[0].dtype)
    with forms.no_autocast(x):
        return [F.linear(normed, weight) for weight in weights]


@torch.library.custom_op("mixerzoo::normed_linear", mutates_args=())
def _op(x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    return _naive(x, weights, eps)


@_op.register_fake
def _(x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], weight.size(0)), dtype=weight.dtype) for weight in weights]


@torch.library.custom_op("mixerzoo::normed_linear_backward", mutates_args=())
def _backward_op(grads: list[Tensor], x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    """Gradients of x and of each W."""
    exact = x.to(forms.exact_dtype(x))
    inverse_rms = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    normed = exact * inverse_rms
    factor = normed.to(weights[0].dtype).reshape(-1, x.size(-1))
    of_weights = [grad.reshape(-1, grad.size(-1)).mT @ factor for grad in grads]
    of_normed = sum((grad @ weight).to(exact.dtype) for grad, weight in zip(grads, weights, strict=True))
    assert isinstance(of_normed, Tensor)
    along = (of_normed * normed).mean(-1, keepdim=True)
    of_x = torch.addcmul(of_normed, normed, along, value=-1).mul_(inverse_rms)
    return [of_x.to(x.dtype), *of_weights]


@_backward_op.register_fake
def _(grads: list[Tensor], x: Tensor, weights: list[Tensor], eps: float) -> list[Tensor]:
    return [like.new_empty(like.shape) for like in (x, *weights)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.eps = inputs
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, list[Tensor], None]:
    x, *weights = ctx.saved_tensors
    if torch.is_grad_enabled():
        out = _naive(x, weights, ctx.eps)
        paired = torch.cat([each.flatten() for each in out]), torch.cat([grad.flatten() for grad in grads])
        of_x, *of_weights = forms.gradients(paired[0], [x, *weights], paired[1])
    else:
        of_x, *of_weights = _backward_op(grads, x, weights, ctx.eps)
    return of_x, of_weights, None


_op.register_autograd(_backward, setup_context=_keep)
