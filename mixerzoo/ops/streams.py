"""What a sublayer reads of several residual streams, and what becomes of them after it: hyper-connections' step.

Letters in shapes: n streams [..., n, D], rows are all but the last two dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms

#: The streams are one tensor. Compiled, the equation is fused and recomputed.
POLICY = forms.Policy(few=0, compiled=False, always=True)


def stream_read(streams: Tensor, weights: Tensor) -> Tensor:
    """Σ_i w_i·S_i.

    Args:
        streams: S [..., n, D].
        weights: w [n], or [..., n].

    Returns:
        [..., D], in the dtype of the streams.
    """
    form = forms.choose([streams], POLICY, [weights])
    if form == "naive":
        return _naive_read(streams, weights)
    out: Tensor = _read_op(streams, weights.expand(streams.shape[:-1]), form == "kernel")
    return out


def stream_write(streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor) -> Tensor:
    """S_i ← Σ_j M_ij·S_j + p_i·y.

    Args:
        streams: S [..., n, D].
        mix: M [n, n], or [..., n, n]; None: the identity.
        post: p [n], or [..., n].
        y: [..., D], a sublayer's output.

    Returns:
        [..., n, D], in the widest dtype of streams and y.

    Raises:
        ValueError: the output is not of the streams' shape.
    """
    if y.shape != (*streams.shape[:-2], streams.size(-1)):
        raise ValueError(f"streams of shape {list(streams.shape)} cannot take an output of shape {list(y.shape)}")
    form = forms.choose([streams], POLICY, [post, y, *([] if mix is None else [mix])])
    if form == "naive":
        return _naive_write(streams, mix, post, y)
    shape = streams.shape[:-1]
    if mix is not None:
        mix = mix.expand(*shape, shape[-1])
    out: Tensor = _write_op(streams, mix, post.expand(shape), y, form == "kernel")
    return out


def _naive_read(streams: Tensor, weights: Tensor) -> Tensor:
    each, rows = weights.to(streams.dtype).unsqueeze(-1).unbind(-2), streams.unbind(-2)
    total = each[0] * rows[0]
    for weight, row in zip(each[1:], rows[1:], strict=True):
        total = torch.addcmul(total, weight, row)
    return total


def _naive_write(streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor) -> Tensor:
    mixed = streams
    if mix is not None:
        # Not a product of matrices: autocast would round the streams to half precision.
        columns, rows = mix.to(streams.dtype).unsqueeze(-1).unbind(-2), streams.split(1, -2)
        mixed = columns[0] * rows[0]
        for column, row in zip(columns[1:], rows[1:], strict=True):
            mixed = torch.addcmul(mixed, column, row)
    return torch.addcmul(mixed, post.to(streams.dtype).unsqueeze(-1), y.unsqueeze(-2))


@torch.library.custom_op("mixerzoo::stream_read", mutates_args=())
def _read_op(streams: Tensor, weights: Tensor, kernel: bool) -> Tensor:
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.stream_read(streams, weights)
    return _product(weights.to(streams.dtype).unsqueeze(-2), streams).squeeze(-2)


@_read_op.register_fake
def _(streams: Tensor, weights: Tensor, kernel: bool) -> Tensor:
    return streams.new_empty((*streams.shape[:-2], streams.size(-1)))


@torch.library.custom_op("mixerzoo::stream_read_backward", mutates_args=())
def _read_backward_op(grad: Tensor, streams: Tensor, weights: Tensor, kernel: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the streams and of the weights."""
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.stream_read_backward(grad, streams, weights)
    of_weights = (streams * grad.unsqueeze(-2)).sum(-1, dtype=forms.exact_dtype(grad))
    of_streams = weights.to(streams.dtype).unsqueeze(-1) * grad.unsqueeze(-2)
    return of_streams, of_weights.to(weights.dtype)


@_read_backward_op.register_fake
def _(grad: Tensor, streams: Tensor, weights: Tensor, kernel: bool) -> tuple[Tensor, Tensor]:
    return streams.new_empty(streams.shape), weights.new_empty(weights.shape)


def _keep_read(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    streams, weights, ctx.kernel = inputs
    ctx.save_for_backward(streams, weights)


def _backward_read(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    streams, weights = ctx.saved_tensors
    if torch.is_grad_enabled():
        of_streams, of_weights = forms.gradients(_naive_read, [streams, weights], grad)
    else:
        of_streams, of_weights = _read_backward_op(grad, streams, weights, ctx.kernel)
    return of_streams, of_weights, None


_read_op.register_autograd(_backward_read, setup_context=_keep_read)


@torch.library.custom_op("mixerzoo::stream_write", mutates_args=())
def _write_op(streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor, kernel: bool) -> Tensor:
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.stream_write(streams, mix, post, y)
    dtype = forms.common_dtype([streams, y])
    post = post.to(streams.dtype).to(dtype).unsqueeze(-1)
    if mix is None:
        return torch.addcmul(streams.to(dtype), post, y.to(dtype).unsqueeze(-2))
    mixed = _product(mix.to(streams.dtype), streams).to(dtype)
    return mixed.addcmul_(post, y.to(dtype).unsqueeze(-2))


@_write_op.register_fake
def _(streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor, kernel: bool) -> Tensor:
    return streams.new_empty(streams.shape, dtype=forms.common_dtype([streams, y]))


@torch.library.custom_op("mixerzoo::stream_write_backward", mutates_args=())
def _write_backward_op(
    grad: Tensor, streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor, kernel: bool
) -> list[Tensor]:
    """Gradients of the streams, of the weights of the output and of the output, then of the matrix if there is one."""
    if kernel:
        from mixerzoo.ops import stream_kernels

        return stream_kernels.stream_write_backward(grad, streams, mix, post, y)
    of_post = (grad * y.unsqueeze(-2)).sum(-1, dtype=forms.exact_dtype(grad)).to(post.dtype)
    of_y = _product(post.to(grad.dtype).unsqueeze(-2), grad).squeeze(-2).to(y.dtype)
    if mix is None:
        return [grad.to(streams.dtype, copy=True).contiguous(), of_post, of_y]
    of_streams = _product(mix.to(grad.dtype).mT, grad).to(streams.dtype)
    return [of_streams, of_post, of_y, _product(grad, streams.to(grad.dtype).mT).to(mix.dtype)]


@_write_backward_op.register_fake
def _(grad: Tensor, streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor, kernel: bool) -> list[Tensor]:
    return [like.new_empty(like.shape) for like in (streams, post, y, mix) if like is not None]


def _keep_write(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    streams, mix, post, y, ctx.kernel = inputs
    ctx.save_for_backward(streams, post, y, *([] if mix is None else [mix]))


def _backward_write(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, None]:
    streams, post, y, *mixes = ctx.saved_tensors
    mix = mixes[0] if mixes else None
    if torch.is_grad_enabled():

        def again(streams: Tensor, post: Tensor, y: Tensor, *mixes: Tensor) -> Tensor:
            return _naive_write(streams, mixes[0] if mixes else None, post, y)

        found = forms.gradients(again, [streams, post, y, *mixes], grad)
    else:
        found = _write_backward_op(grad, streams, mix, post, y, ctx.kernel)
    return found[0], found[3] if mixes else None, found[1], found[2], None


_write_op.register_autograd(_backward_write, setup_context=_keep_write)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a·b [..., i, k] of [..., i, j] and [..., j, k], in their own dtype also under autocast."""
    with forms.no_autocast(a):
        return a @ b
