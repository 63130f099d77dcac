"""Learned queries that attend over N sources: Attention Residuals' read.

Letters in shapes: N sources [..., D], rows are all but the last dimension; Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixerzoo.ops import forms
from mixerzoo.ops.flops import Shape, of_products
from mixerzoo.ops.normed_product import POLICY as PRODUCT_POLICY
from mixerzoo.ops.normed_product import naive_product, product_backward_op, product_op
from mixerzoo.ops.shared import are_shared
from mixerzoo.ops.weighted_sum import gradients as sum_gradients
from mixerzoo.ops.weighted_sum import naive as weighted_sum
from mixerzoo.ops.weighted_sum import stack_sum, sums_op

#: On an H100, with a kernel that made the scores too, the equation takes 1.6 times the kernel's time with 5 sources and
#: 2.6 with 49, and keeps 20 to 160 times as much. Compiled, both take the same, but the first step of a decoder with 17
#: sources takes 125 s as the equation, and 32 with the kernel.
#: On a CPU the mix of a stack of 8 takes a third of the time at 2¹¹ elements, 0.7 at 2¹⁴ and as long at 2¹⁵.
POLICY = forms.Policy(few=1, compiled=True, stacked=1 << 14)


def source_scores(source: Tensor, queries: Sequence[Tensor], gains: Sequence[Tensor], eps: float) -> tuple[Tensor, ...]:
    """⟨w ⊙ γ, x⟩ / rms(x) of one source x and every query w that will read it: x is read once for all of them.

    Args:
        source: x [..., D].
        queries: w, Q tensors [D]; maybe none.
        gains: γ of the norm in front of each query, Q tensors [D].
        eps: of the norms.

    Returns:
        Q tensors [...], in float32 (float64 for float64).

    Raises:
        ValueError: there are not as many gains as queries.
    """
    if len(queries) != len(gains):
        raise ValueError(f"{len(queries)} queries cannot have {len(gains)} gains")
    if not queries:
        return ()
    form = forms.choose([source], PRODUCT_POLICY, [*queries, *gains])
    if form == "naive":
        return _naive_scores(source, queries, gains, eps).unbind(-1)
    kernel = form == "kernel" and len(queries) == 1
    scores: Tensor = _scores_op(source, list(queries), list(gains), eps, kernel)[0]
    return scores.unbind(-1)


def _naive_scores(source: Tensor, queries: Sequence[Tensor], gains: Sequence[Tensor], eps: float) -> Tensor:
    return naive_product(source, _folded(source, queries, gains), eps, None)


def _folded(source: Tensor, queries: Sequence[Tensor], gains: Sequence[Tensor]) -> Tensor:
    """Queries [Q, D], gains folded in."""
    exact = forms.exact_dtype(source)
    if len(queries) == 1:
        return (queries[0].to(exact) * gains[0].to(exact)).unsqueeze(0)
    return _stacked(queries, exact) * _stacked(gains, exact)


def _stacked(vectors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    # One by one: autocast to one short dtype refuses to stack the other. Calls of `to` take time in decoding, even with
    # nothing to do.
    return torch.stack([x if x.dtype == dtype else x.to(dtype) for x in vectors])


@torch.library.custom_op("mixerzoo::source_scores", mutates_args=())
def _scores_op(
    source: Tensor, queries: list[Tensor], gains: list[Tensor], eps: float, kernel: bool
) -> tuple[Tensor, Tensor]:
    """The scores [..., Q], and 1 / rms [..., 1]."""
    found: tuple[Tensor, Tensor] = product_op(source, _folded(source, queries, gains), eps, None, kernel)
    return found


@_scores_op.register_fake
def _(source: Tensor, queries: list[Tensor], gains: list[Tensor], eps: float, kernel: bool) -> tuple[Tensor, Tensor]:
    exact, rows = forms.exact_dtype(source), source.shape[:-1]
    return source.new_empty((*rows, len(queries)), dtype=exact), source.new_empty((*rows, 1), dtype=exact)


@torch.library.custom_op("mixerzoo::source_scores_backward", mutates_args=())
def _scores_backward_op(
    grad: Tensor,
    source: Tensor,
    queries: list[Tensor],
    gains: list[Tensor],
    scores: Tensor,
    inverse_rms: Tensor,
    kernel: bool,
) -> list[Tensor]:
    """Gradients of the source, of the queries and of the gains [Q, D]."""
    folded = _folded(source, queries, gains)
    of_source, of_folded = product_backward_op(grad, source, folded, None, scores, inverse_rms, kernel)
    return [of_source, *(of_folded * _stacked(each, grad.dtype) for each in (gains, queries))]


@_scores_backward_op.register_fake
def _(
    grad: Tensor,
    source: Tensor,
    queries: list[Tensor],
    gains: list[Tensor],
    scores: Tensor,
    inverse_rms: Tensor,
    kernel: bool,
) -> list[Tensor]:
    like = grad.new_empty((len(queries), source.size(-1)))
    return [source.new_empty(source.shape), like, like.clone()]


def _keep_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    source, queries, gains, ctx.eps, ctx.kernel = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(source, *output, *queries, *gains)


def _backward_scores(
    ctx: Any, grad: Tensor, _: Tensor
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], None, None]:
    source, scores, inverse_rms, *parameters = ctx.saved_tensors
    count = len(parameters) // 2
    queries, gains = parameters[:count], parameters[count:]
    if torch.is_grad_enabled():

        def scores_again(source: Tensor, *parameters: Tensor) -> Tensor:
            return _naive_scores(source, parameters[:count], parameters[count:], ctx.eps)

        of_source, *found = forms.gradients(scores_again, [source, *parameters], grad)
        return of_source, [*found[:count]], [*found[count:]], None, None
    of_source, *both = _scores_backward_op(grad, source, queries, gains, scores, inverse_rms, ctx.kernel)
    of_queries, of_gains = (
        [found.to(each.dtype) for found, each in zip(of_all.unbind(0), like, strict=True)]
        for of_all, like in zip(both, (queries, gains), strict=True)
    )
    return of_source, of_queries, of_gains, None, None


_scores_op.register_autograd(_backward_scores, setup_context=_keep_scores)


@register_flop_formula(torch.ops.mixerzoo.source_scores)
def _(source: Shape, queries: list[Shape], *_: Any, **__: Any) -> int:
    return of_products(source, queries)


@register_flop_formula(torch.ops.mixerzoo.source_scores_backward)
def _(grad: Shape, source: Shape, queries: list[Shape], *_: Any, **__: Any) -> int:
    return 2 * of_products(source, queries)


def source_weights(scores: Sequence[Tensor]) -> Tensor:
    """α = softmax_n(scores) [..., N]; scores as in `source_softmax`."""
    # In memory sources come first: a CPU takes a fifth of the time.
    return torch.stack([*scores]).softmax(0).movedim(0, -1)


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
        return stack_sum(torch.stack([*sources], dim=-2), weights)
    return weighted_sum(sources, weights)


@torch.library.custom_op("mixerzoo::source_softmax", mutates_args=(), tags=forms.TAGS)
def _op(sources: list[Tensor], scores: list[Tensor], kernel: bool) -> Tensor:
    out: list[Tensor] = sums_op(sources, [source_weights(scores)], [], kernel)
    return out[0]


@_op.register_fake
def _(sources: list[Tensor], scores: list[Tensor], kernel: bool) -> Tensor:
    return sources[0].new_empty(sources[0].shape, dtype=forms.common_dtype(sources))


def _keep(ctx: Any, inputs: tuple[list[Tensor], list[Tensor], bool], output: Tensor) -> None:
    sources, scores, ctx.kernel = inputs
    ctx.are_shared = are_shared(sources)
    ctx.save_for_backward(*sources, *scores)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], list[Tensor], None]:
    saved = ctx.saved_tensors  # once: activation checkpointing gives them a single time
    sources, scores = list(saved[: len(saved) // 2]), list(saved[len(saved) // 2 :])
    count = len(sources)
    if torch.is_grad_enabled():

        def again(*both: Tensor) -> Tensor:
            return weighted_sum(both[:count], source_weights(both[count:]))

        found = forms.gradients(again, saved, grad)
        return found[:count], found[count:], None
    # Made again from the scores, which other nodes keep in any case.
    weights = source_weights(scores)
    exact = grad if ctx.kernel else grad.to(weights.dtype)
    *of_sources, of_weights = sum_gradients([exact], sources, [weights], [], ctx.are_shared, ctx.kernel)
    weighted = weights * of_weights
    of_scores = torch.addcmul(weighted, weights, weighted.sum(-1, keepdim=True), value=-1)
    return of_sources, list(of_scores.unbind(-1)), None


_op.register_autograd(_backward, setup_context=_keep)
