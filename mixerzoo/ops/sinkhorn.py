"""Sinkhorn's iteration, of which nothing but its logits is kept.

Letters in shapes: n rows and columns of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms

#: Below which no entry starts.
FLOOR = 1e-12


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """A nearly doubly stochastic matrix: exp, then rows and columns divided by their sums in turn.

    Columns come last, so they sum to 1 up to rounding; rows do as far as the iterations have converged.

    Args:
        logits: [..., n, n]; computed in float32, or float64 for float64.
        iterations: passes over rows and columns.

    Returns:
        [..., n, n], in the logits' dtype.

    Raises:
        ValueError: the matrices are not square.
    """
    if logits.size(-2) != logits.size(-1):
        raise ValueError(f"matrices of logits must be square, not {list(logits.shape)}")
    exact = forms.exact_dtype(logits)
    if logits.dtype != exact:
        return sinkhorn(logits.to(exact), iterations).to(logits.dtype)
    form = forms.forced_form()
    if form == "naive":
        return _naive(logits, iterations)
    # Always one node: compiled, the equation would be forty and more a sublayer.
    kernel = form == "kernel" or (form is None and logits.is_cuda and forms.HAS_TRITON)
    out: Tensor = _op(logits, iterations, kernel)
    return out


def _naive(logits: Tensor, iterations: int) -> Tensor:
    matrix = (logits - logits.amax((-2, -1), keepdim=True)).exp().clamp(min=FLOOR)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix


@torch.library.custom_op("mixerzoo::sinkhorn", mutates_args=())
def _op(logits: Tensor, iterations: int, kernel: bool) -> Tensor:
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.sinkhorn(logits, iterations, FLOOR)
    matrix = _start(logits)
    for _ in range(iterations):
        matrix /= matrix.sum(1, keepdim=True)
        matrix /= matrix.sum(0, keepdim=True)
    return _last(matrix, logits)


@_op.register_fake
def _(logits: Tensor, iterations: int, kernel: bool) -> Tensor:
    return logits.new_empty(logits.shape)


@torch.library.custom_op("mixerzoo::sinkhorn_backward", mutates_args=())
def _backward_op(grad: Tensor, logits: Tensor, iterations: int, kernel: bool) -> Tensor:
    """Gradient of the logits; the iteration runs again for it."""
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.sinkhorn_backward(grad, logits, iterations, FLOOR)
    start = _start(logits)
    matrix, sums = start.clone(), []
    for number in range(2 * iterations):
        axis = 1 - number % 2
        sums.append(matrix.sum(axis, keepdim=True))
        matrix /= sums[-1]
    of_matrix = _first(grad)
    for number in reversed(range(2 * iterations)):
        axis = 1 - number % 2
        of_matrix = (of_matrix - (of_matrix * matrix).sum(axis, keepdim=True)).div_(sums[number])
        # The matrix before the division; its rounding errors stay those of the way there.
        matrix *= sums[number]
    of_logits = of_matrix.mul_(start).masked_fill_(start <= FLOOR, 0)
    # The largest logit was taken off all, which nothing but the floor notices.
    largest = start == 1
    of_logits -= largest * (of_logits.sum((0, 1), keepdim=True) / largest.sum((0, 1), keepdim=True))
    return _last(of_logits, logits)


@_backward_op.register_fake
def _(grad: Tensor, logits: Tensor, iterations: int, kernel: bool) -> Tensor:
    return logits.new_empty(logits.shape)


def _first(x: Tensor) -> Tensor:
    """[n, n, rows] of [..., n, n]: sums over a few elements are fast where many lie beside each other."""
    return x.flatten(0, -3).permute(1, 2, 0).contiguous() if x.ndim > 2 else x.unsqueeze(-1).contiguous()


def _last(x: Tensor, like: Tensor) -> Tensor:
    """The way back, in the shape of ``like``."""
    return x.permute(2, 0, 1).reshape(like.shape).contiguous()


def _start(logits: Tensor) -> Tensor:
    first = _first(logits)
    return (first - first.amax((0, 1), keepdim=True)).exp_().clamp_(min=FLOOR)


def _keep(ctx: Any, inputs: tuple[Tensor, int, bool], output: Tensor) -> None:
    logits, ctx.iterations, ctx.kernel = inputs
    ctx.save_for_backward(logits)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
    (logits,) = ctx.saved_tensors
    if torch.is_grad_enabled():
        (found,) = forms.gradients(lambda logits: _naive(logits, ctx.iterations), [logits], grad)
    else:
        found = _backward_op(grad, logits, ctx.iterations, ctx.kernel)
    return found, None, None


_op.register_autograd(_backward, setup_context=_keep)
