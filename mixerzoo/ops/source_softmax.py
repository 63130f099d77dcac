"""A learned query that attends over N sources: Attention Residuals' read.

Letters in shapes: N sources [..., D], rows are all but the last dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms
from mixerzoo.ops.weighted_sum import naive as weighted_sum
from mixerzoo.ops.weighted_sum import stack_sum

#: On an H100 the equation takes 1.6 times the kernel's time with 5 sources and 2.6 with 49, and keeps 20 to 160 times
#: as much. Compiled, both take the same, but the first step of a decoder with 17 sources takes 125 s as the equation,
#: and 32 with the kernel.
#: On a CPU the mix of a stack of 8 takes a third of the time at 2¹¹ elements, 0.7 at 2¹⁴ and as long at 2¹⁵.
POLICY = forms.Policy(few=1, compiled=True, stacked=1 << 14)


def source_softmax(
    sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Σ_n α_n·x_n with α = softmax_n(⟨w, x_n⟩·r_n), the keys being the RMS-normed sources.

    Args:
        sources: N tensors [..., D] of at least three dimensions; stacked if small. Their dtypes may differ.
        inverse_rms: r_n = 1 / rms(x_n) [...] of each, as `inverse_rms` gives it: once for a source, not per query.
        query: w [D], the norm's gain folded in.
        bias: [1], added to the last source's score; None: nothing.

    Returns:
        [..., D], in the widest dtype of the sources.

    Raises:
        ValueError: there are not as many r as sources.
    """
    if len(sources) != len(inverse_rms):
        raise ValueError(f"{len(sources)} sources cannot have 1 / rms of {len(inverse_rms)}")
    form = forms.choose(sources, POLICY, [*inverse_rms, query])
    if form == "naive":
        stacked = forms.stacks(sources, POLICY)
        return _of_stack(sources, inverse_rms, query, bias) if stacked else _naive(sources, inverse_rms, query, bias)[0]
    out, _ = _op(list(sources), list(inverse_rms), query, bias, form == "kernel")
    return out  # type: ignore[no-any-return]


def source_weights(
    sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, bias: Tensor | None = None
) -> Tensor:
    """α [..., N]; arguments as in `source_softmax`."""
    return _naive(sources, inverse_rms, query, bias)[1].softmax(-1)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + eps) over the last dimension of x [..., D]: [...], in float32 (float64 for float64)."""
    if torch.compiler.is_compiling() or forms.choose([x], forms.Policy(few=0, compiled=False)) == "naive":
        return _naive_inverse_rms(x, eps)
    found: Tensor = _inverse_rms_op(x, eps)
    return found


def _naive(
    sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mix, and the scores [..., N]."""
    each = [dot(x, query) * r for x, r in zip(sources, inverse_rms, strict=True)]
    if bias is not None:
        each[-1] = each[-1] + bias
    scores = torch.stack(each, dim=-1)
    return weighted_sum(sources, scores.softmax(-1)), scores


def _of_stack(sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, bias: Tensor | None) -> Tensor:
    """The mix in few calls, of small sources of one dtype."""
    stack = torch.stack([*sources], dim=-2)
    scores = dot(stack, query) * torch.stack([*inverse_rms], dim=-1)
    if bias is not None:
        scores = torch.cat([scores[..., :-1], scores[..., -1:] + bias], dim=-1)
    return stack_sum(stack, scores.softmax(-1))


def dot(x: Tensor, query: Tensor) -> Tensor:
    """⟨x, query⟩ over the last dimension, exactly, also under autocast."""
    exact = forms.exact_dtype(x)
    with forms.no_autocast(x):
        return x.to(exact) @ query.to(exact)


@torch.library.custom_op("mixerzoo::source_softmax", mutates_args=(), tags=forms.TAGS)
def _op(
    sources: list[Tensor], inverse_rms: list[Tensor], query: Tensor, bias: Tensor | None, kernel: bool
) -> tuple[Tensor, Tensor]:
    if kernel:
        from mixerzoo.ops import kernels

        return kernels.source_softmax(sources, inverse_rms, query, bias)
    out, scores = _naive(sources, inverse_rms, query, bias)
    return out.contiguous(), scores.contiguous()


@_op.register_fake
def _(
    sources: list[Tensor], inverse_rms: list[Tensor], query: Tensor, bias: Tensor | None, kernel: bool
) -> tuple[Tensor, Tensor]:
    first = sources[0]
    scores = first.new_empty((*first.shape[:-1], len(sources)), dtype=forms.exact_dtype(first))
    return first.new_empty(first.shape, dtype=forms.common_dtype(sources)), scores


@torch.library.custom_op("mixerzoo::source_softmax_backward", mutates_args=(), tags=forms.TAGS)
def _backward_op(
    grad: Tensor,
    sources: list[Tensor],
    inverse_rms: list[Tensor],
    query: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    scores: Tensor,
) -> list[Tensor]:
    """Gradients of the sources, of their inverse rms, of the query [D] and of the last score [1].

    The kernel reads ``out``; without it the sources are gone over twice.
    """
    weights = scores.softmax(-1)
    if out is not None:
        from mixerzoo.ops import kernels

        return kernels.source_softmax_backward(grad, sources, inverse_rms, query, out, weights)
    exact = forms.exact_dtype(grad)
    grad, query_exact = grad.to(exact), query.to(exact)
    # One piece of memory for all products, as in `weighted_sum`.
    product = torch.empty_like(grad)
    of_weights = [torch.mul(grad, x, out=product).sum(-1) for x in sources]
    mean = sum(weights[..., n] * found for n, found in enumerate(of_weights))
    of_sources, of_rms, of_query = [], [], torch.zeros_like(query_exact)
    for n, (x, r, score) in enumerate(zip(sources, inverse_rms, scores.unbind(-1), strict=True)):
        of_score = weights[..., n] * (of_weights[n] - mean)
        scaled = of_score * r
        of_x = (weights[..., n : n + 1] * grad).addcmul_(scaled.unsqueeze(-1), query_exact)
        of_sources.append(of_x.to(x.dtype).contiguous())
        # Where a score says nothing of its dot, of a source that is too large or masked, neither weighs.
        dots = ((score if bias is None or n + 1 < len(sources) else score - bias) / r).nan_to_num(0.0, 0.0, 0.0)
        of_rms.append((of_score * dots).to(r.dtype).contiguous())
        of_query += torch.mul(scaled.unsqueeze(-1), x, out=product).flatten(0, -2).sum(0)
    last = of_score.sum().view(1)
    return [*of_sources, *of_rms, of_query.to(query.dtype), last.to(query.dtype)]


@_backward_op.register_fake
def _(
    grad: Tensor,
    sources: list[Tensor],
    inverse_rms: list[Tensor],
    query: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    scores: Tensor,
) -> list[Tensor]:
    return [
        *(x.new_empty(x.shape) for x in (*sources, *inverse_rms)),
        query.new_empty(query.shape),
        query.new_empty(1),
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    sources, inverse_rms, query, bias, ctx.kernel = inputs
    ctx.num_sources = len(sources)
    ctx.mark_non_differentiable(output[1])
    out, scores = output
    others = [each for each in (out if ctx.kernel else None, bias) if each is not None]
    ctx.save_for_backward(*sources, *inverse_rms, query, scores, *others)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor | None, None]:
    n = ctx.num_sources
    saved = ctx.saved_tensors  # once: activation checkpointing gives them a single time
    sources, inverse_rms = list(saved[:n]), list(saved[n : 2 * n])
    query, scores, *others = saved[2 * n :]
    out, biases = (others[0], others[1:]) if ctx.kernel else (None, others)
    bias = biases[0] if biases else None
    if torch.is_grad_enabled():
        again, _ = _naive(sources, inverse_rms, query, bias)
        found = forms.gradients(again, [*sources, *inverse_rms, query, *biases], grad)
    else:
        found = _backward_op(grad, sources, inverse_rms, query, bias, out, scores)
    of_bias = None if bias is None or found[2 * n + 1] is None else found[2 * n + 1].to(bias.dtype)
    return found[:n], found[n : 2 * n], found[2 * n], of_bias, None


_op.register_autograd(_backward, setup_context=_keep)


def _naive_inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.to(forms.exact_dtype(x)).square().mean(-1) + eps)


@torch.library.custom_op("mixerzoo::inverse_rms", mutates_args=())
def _inverse_rms_op(x: Tensor, eps: float) -> Tensor:
    # One pass, and nothing of x's size in between.
    square = torch.linalg.vector_norm(x, dim=-1, dtype=forms.exact_dtype(x)).square()
    return torch.rsqrt(square / x.size(-1) + eps)


@_inverse_rms_op.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=forms.exact_dtype(x))


def _keep_rms(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward_rms(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    x, found = ctx.saved_tensors
    # `found` is an output, so both can be differentiated again.
    return ((grad * found.pow(3) / -x.size(-1)).unsqueeze(-1) * x).to(x.dtype), None


_inverse_rms_op.register_autograd(_backward_rms, setup_context=_keep_rms)
