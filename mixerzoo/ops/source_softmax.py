"""Learned queries that attend over N sources: Attention Residuals' read.

Letters in shapes: N sources [..., D], rows are all but the last dimension; Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms, weighted_sum
from mixerzoo.ops.normed_product import normed_product

#: On an H100, with a kernel that made the scores too, the equation takes 1.6 times the kernel's time with 5 sources and
#: 2.6 with 49, and keeps 20 to 160 times as much. Compiled, both take the same, but the first step of a decoder with 17
#: sources takes 125 s as the equation, and 32 with the kernel.
#: On a CPU the mix of a stack of 8 takes a third of the time at 2¹¹ elements, 0.7 at 2¹⁴ and as long at 2¹⁵.
POLICY = forms.Policy(few=1, compiled=True, stacked=1 << 14)


def source_scores(source: Tensor, queries: Tensor, eps: float) -> tuple[Tensor, ...]:
    """⟨w, x⟩ / rms(x) of one source x and every query w that will read it: a source is read once for all of them.

    Args:
        source: x [..., D].
        queries: w [Q, D], the norm's gain folded in.
        eps: of the norm.

    Returns:
        Q tensors [...], in float32 (float64 for float64).
    """
    return normed_product(source, queries, eps).unbind(-1)


def source_weights(scores: Sequence[Tensor]) -> Tensor:
    """α = softmax_n(scores) [..., N]; scores as in `source_softmax`."""
    return torch.stack([*scores], dim=-1).softmax(-1)


def source_softmax(sources: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
    """Σ_n α_n·x_n with α = softmax_n(scores).

    Args:
        sources: x, N tensors [..., D] of at least three dimensions; stacked if small. Their dtypes may differ.
        scores: of one query with each source [...], as `source_scores` gives them.

    Returns:
        [..., D], in the widest dtype of the sources.

    Raises:
        ValueError: there are not as many scores as sources.
    """
    if len(sources) != len(scores):
        raise ValueError(f"{len(sources)} sources cannot have {len(scores)} scores")
    form = forms.choose(sources, POLICY, scores)
    if form != "naive":
        mixed: Tensor = _op(list(sources), list(scores), form == "kernel")
        return mixed
    weights = source_weights(scores)
    if forms.stacks(sources, POLICY):
        return weighted_sum.stack_sum(torch.stack([*sources], dim=-2), weights)
    return weighted_sum.naive(sources, weights)


@torch.library.custom_op("mixerzoo::source_softmax", mutates_args=(), tags=forms.TAGS)
def _op(sources: list[Tensor], scores: list[Tensor], kernel: bool) -> Tensor:
    out: list[Tensor] = weighted_sum.op(sources, [source_weights(scores)], [], kernel)
    return out[0]


@_op.register_fake
def _(sources: list[Tensor], scores: list[Tensor], kernel: bool) -> Tensor:
    return sources[0].new_empty(sources[0].shape, dtype=forms.common_dtype(sources))


@torch.library.custom_op("mixerzoo::source_softmax_backward", mutates_args=(), tags=forms.TAGS)
def _backward_op(grad: Tensor, sources: list[Tensor], scores: list[Tensor], kernel: bool) -> list[Tensor]:
    """Gradients of the sources, then that of the scores [..., N]."""
    # Made again from the scores, which other nodes keep in any case.
    weights = source_weights(scores)
    exact = grad if kernel else grad.to(weights.dtype)
    *of_sources, of_weights = weighted_sum.backward_op([exact], sources, [weights], [], kernel)
    weighted = weights * of_weights
    return [*of_sources, torch.addcmul(weighted, weights, weighted.sum(-1, keepdim=True), value=-1)]


@_backward_op.register_fake
def _(grad: Tensor, sources: list[Tensor], scores: list[Tensor], kernel: bool) -> list[Tensor]:
    of_scores = scores[0].new_empty((*scores[0].shape, len(scores)))
    return [*(x.new_empty(x.shape) for x in sources), of_scores]


def _keep(ctx: Any, inputs: tuple[list[Tensor], list[Tensor], bool], output: Tensor) -> None:
    sources, scores, ctx.kernel = inputs
    ctx.save_for_backward(*sources, *scores)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], list[Tensor], None]:
    saved = ctx.saved_tensors  # once: activation checkpointing gives them a single time
    sources, scores = list(saved[: len(saved) // 2]), list(saved[len(saved) // 2 :])
    if torch.is_grad_enabled():
        found = forms.gradients(weighted_sum.naive(sources, source_weights(scores)), saved, grad)
        return found[: len(sources)], found[len(sources) :], None
    *of_sources, of_scores = _backward_op(grad, sources, scores, ctx.kernel)
    return of_sources, list(of_scores.unbind(-1)), None


_op.register_autograd(_backward, setup_context=_keep)
