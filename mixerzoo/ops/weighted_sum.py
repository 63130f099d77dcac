"""The weighted sum of N sources.

Letters in shapes: N sources of one shape [..., D].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms

#: Forward and backward of 8192 × 1536 bf16 on an H100: the equation takes 0.18 ms a source, the kernel about 1 ms for 4
#: to 25. Compiled, a step of DenseFormer takes 1.045 of residual's as the equation, 1.076 with the kernel.
POLICY = forms.Policy(few=5, compiled=False)


def weighted_sum(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ_n w_n ⊙ x_n.

    Args:
        sources: N tensors [..., D] of at least three dimensions; never stacked. Their dtypes may differ.
        weights: [N] one number each, [N, D] one per channel, or [..., N] one per token.

    Returns:
        [..., D], in the widest dtype of the sources.
    """
    form = forms.choose(sources, POLICY, [weights])
    if form == "naive":
        return naive(sources, weights)
    out: Tensor = _op(list(sources), weights, form == "kernel")
    return out


def naive(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The equation; arguments as in `weighted_sum`."""
    dtype = forms.common_dtype(sources)
    total: Tensor | None = None
    for source, weight in zip(sources, _each(weights, dtype), strict=True):
        total = (weight * source).to(dtype) if total is None else torch.addcmul(total, weight, source.to(dtype))
    assert total is not None
    return total


def _each(weights: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """A weight for each source, that broadcasts against it."""
    if weights.ndim <= 2:
        return weights.unbind(0)
    return weights.to(dtype).unsqueeze(-2).unbind(-1)


@torch.library.custom_op("mixerzoo::weighted_sum", mutates_args=(), tags=forms.TAGS)
def _op(sources: list[Tensor], weights: Tensor, kernel: bool) -> Tensor:
    if kernel and weights.ndim != 2:
        from mixerzoo.ops import kernels

        return kernels.weighted_sum(sources, weights)
    return naive(sources, weights).contiguous()


@_op.register_fake
def _(sources: list[Tensor], weights: Tensor, kernel: bool) -> Tensor:
    return sources[0].new_empty(sources[0].shape, dtype=forms.common_dtype(sources))


@torch.library.custom_op("mixerzoo::weighted_sum_backward", mutates_args=(), tags=forms.TAGS)
def _backward_op(grad: Tensor, sources: list[Tensor], weights: Tensor, kernel: bool) -> list[Tensor]:
    """Gradients of the sources, then that of the weights."""
    if kernel and weights.ndim != 2:
        from mixerzoo.ops import kernels

        return kernels.weighted_sum_backward(grad, sources, weights)
    dtype = forms.common_dtype(sources)
    of_sources = [
        (weight * grad).to(source.dtype).contiguous()
        for source, weight in zip(sources, _each(weights, dtype), strict=True)
    ]
    summed = {1: tuple(range(grad.ndim)), 2: tuple(range(grad.ndim - 1))}.get(weights.ndim, (-1,))
    exact = forms.exact_dtype(grad)
    of_weights = [(grad * source).sum(summed, dtype=exact) for source in sources]
    return [*of_sources, torch.stack(of_weights, dim=-1 if weights.ndim > 2 else 0).to(weights.dtype)]


@_backward_op.register_fake
def _(grad: Tensor, sources: list[Tensor], weights: Tensor, kernel: bool) -> list[Tensor]:
    return [*(source.new_empty(source.shape) for source in sources), weights.new_empty(weights.shape)]


def _keep(ctx: Any, inputs: tuple[list[Tensor], Tensor, bool], output: Tensor) -> None:
    sources, weights, ctx.kernel = inputs
    ctx.save_for_backward(*sources, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], Tensor, None]:
    *sources, weights = ctx.saved_tensors
    if torch.is_grad_enabled():
        # Gradients of gradients are wanted: those of the equation have their own.
        *of_sources, of_weights = forms.gradients(naive(sources, weights), [*sources, weights], grad)
    else:
        *of_sources, of_weights = _backward_op(grad, sources, weights, ctx.kernel)
    return of_sources, of_weights, None


_op.register_autograd(_backward, setup_context=_keep)
