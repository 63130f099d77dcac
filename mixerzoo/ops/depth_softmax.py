"""Attention over depth at one token: Depth-Attention's mix.

Letters in shapes: B batch, H query heads, G key/value heads, T tokens, d head_dim, N sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms
from mixerzoo.ops.shared import Read, are_shared, sum_later
from mixerzoo.ops.weighted_sum import naive as weighted_sum
from mixerzoo.ops.weighted_sum import stack_sum, unsummed

#: Forward and backward on an H100: with 3 sources the equation takes 0.9 ms and the kernel 1.4, with 13 it takes 3.0
#: and the kernel 2.4. Compiled, a step of Depth-Attention takes 1.010 of residual's time as the equation, 1.018 with
#: the kernel.
#: On a CPU stacks of 3 keys and values of 512 elements take 0.7 of the time, of 24 a quarter.
POLICY = forms.Policy(few=7, compiled=False, stacked=1 << 12)


def depth_softmax(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Σ_n α_n·v_n with α = softmax_n(⟨q̄, k_n⟩ / √d), q̄ the mean query of the heads that share a key/value head.

    Args:
        q: queries [B, H, T, d].
        keys: N tensors [B, G, T, d]; stacked if small.
        values: N tensors [B, G, T, e].

    Returns:
        [B, G, T, e].

    Raises:
        ValueError: there are not as many keys as values, or queries have other rows, tokens or width than keys.
    """
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} keys cannot weigh {len(values)} values")
    if (q.size(0), q.shape[2:]) != (keys[0].size(0), keys[0].shape[2:]):
        raise ValueError(f"queries {list(q.shape)} cannot score keys {list(keys[0].shape)}")
    form = forms.choose(values, POLICY, [*keys, q])
    if form == "naive":
        stacked = forms.stacks(values, POLICY) and forms.stacks(keys, POLICY)
        return _of_stacks(q, keys, values) if stacked else _naive(q, keys, values)[0]
    out, _ = _op(q, list(keys), list(values), form == "kernel")
    # Tokens come before heads in memory, as projections give them.
    return out.transpose(1, 2)  # type: ignore[no-any-return]


def mean_query(q: Tensor, num_kv_heads: int) -> Tensor:
    """q̄ [B, G, T, d] of queries [B, H, T, d], in float32 (float64 for float64)."""
    return q.view(q.size(0), num_kv_heads, -1, *q.shape[2:]).mean(2, dtype=forms.exact_dtype(q))


def depth_weights(q: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """α [B, G, T, N]; arguments as in `depth_softmax`."""
    mean_q = mean_query(q, keys[0].size(1))
    scores = torch.stack([(mean_q * key).sum(-1) for key in keys], dim=-1) / math.sqrt(q.size(-1))
    return scores.softmax(-1)


def _naive(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    weights = depth_weights(q, keys)
    return weighted_sum(values, weights), weights


def _of_stacks(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The mix in few calls, of small keys and small values, each of one dtype."""
    mean_q = mean_query(q, keys[0].size(1)).unsqueeze(-2)
    scores = (torch.stack([*keys], dim=-2) * mean_q).sum(-1) / math.sqrt(q.size(-1))
    return stack_sum(torch.stack([*values], dim=-2), scores.softmax(-1))


@torch.library.custom_op("mixerzoo::depth_softmax", mutates_args=(), tags=forms.TAGS)
def _op(q: Tensor, keys: list[Tensor], values: list[Tensor], kernel: bool) -> tuple[Tensor, Tensor]:
    """The mix [B, T, G, e] and its weights [B, T, G, N]."""
    if kernel and keys[0].size(-1) == values[0].size(-1):
        from mixerzoo.ops import kernels

        mean_q = mean_query(q, keys[0].size(1)).transpose(1, 2)
        return kernels.depth_softmax(mean_q, [k.transpose(1, 2) for k in keys], [v.transpose(1, 2) for v in values])
    out, weights = _naive(q, keys, values)
    return out.transpose(1, 2).contiguous(), weights.transpose(1, 2).contiguous()


@_op.register_fake
def _(q: Tensor, keys: list[Tensor], values: list[Tensor], kernel: bool) -> tuple[Tensor, Tensor]:
    batch, groups, tokens, width = values[0].shape
    weights = q.new_empty((batch, tokens, groups, len(keys)), dtype=forms.exact_dtype(q))
    return values[0].new_empty((batch, tokens, groups, width), dtype=forms.common_dtype(values)), weights


@torch.library.custom_op("mixerzoo::depth_softmax_backward", mutates_args=(), tags=forms.TAGS)
def _backward_op(
    grad: Tensor,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    out: Tensor,
    weights: Tensor,
    wanted: list[bool],
    kernel: bool,
) -> list[Tensor]:
    """Gradients of the keys and the values [B, T, G, …] of which they are wanted, of the mean query [B, T, G, d] and of
    its products with the keys [B, T, G, N]."""
    mean_q = mean_query(q, keys[0].size(1)).transpose(1, 2)
    keys, values = [k.transpose(1, 2) for k in keys], [v.transpose(1, 2) for v in values]
    if kernel and keys[0].size(-1) == values[0].size(-1):
        from mixerzoo.ops import kernels

        return kernels.depth_softmax_backward(grad, mean_q, keys, values, out, weights, wanted)
    exact = forms.exact_dtype(grad)
    grad = grad.to(exact)
    of_weights = torch.stack([(grad * v).sum(-1) for v in values], dim=-1)
    # ⟨grad, out⟩ is the mean over sources of the gradients of the weights.
    of_scores = weights * (of_weights - (grad * out).sum(-1, keepdim=True)) / math.sqrt(q.size(-1))
    found = [
        (weight.unsqueeze(-1) * vector).to(x.dtype).contiguous()
        for (weight, vector), x, is_wanted in zip(
            _reads(of_scores, mean_q, weights, grad), [*keys, *values], wanted, strict=True
        )
        if is_wanted
    ]
    of_query = of_scores[..., :1] * keys[0]
    for n, key in enumerate(keys[1:], start=1):
        of_query = torch.addcmul(of_query, of_scores[..., n : n + 1], key.to(exact))
    return [*found, of_query.contiguous(), of_scores.contiguous()]


def _reads(of_scores: Tensor, mean_q: Tensor, weights: Tensor, grad: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each key and then each value the number and the vector of each token whose product is its gradient."""
    return [
        (weight, vector) for numbers, vector in ((of_scores, mean_q), (weights, grad)) for weight in numbers.unbind(-1)
    ]


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    out: Tensor,
    weights: Tensor,
    wanted: list[bool],
    kernel: bool,
) -> list[Tensor]:
    def like(x: Tensor, dtype: torch.dtype) -> Tensor:
        batch, groups, tokens, width = x.shape
        return x.new_empty((batch, tokens, groups, width), dtype=dtype)

    of_sources = [like(x, x.dtype) for x, is_wanted in zip([*keys, *values], wanted, strict=True) if is_wanted]
    exact = forms.exact_dtype(q)
    return [*of_sources, like(keys[0], exact), weights.new_empty(weights.shape, dtype=exact)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, keys, values, ctx.kernel = inputs
    ctx.num_sources, ctx.are_shared = len(keys), are_shared([*keys, *values])
    ctx.mark_non_differentiable(output[1])
    # What comes out is kept by attention in any case.
    ctx.save_for_backward(q, *keys, *values, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, list[Tensor | None], list[Tensor | None], None]:
    n = ctx.num_sources
    q, *others, out, weights = ctx.saved_tensors
    keys, values = list(others[:n]), list(others[n:])
    if torch.is_grad_enabled():

        def again(q: Tensor, *kv: Tensor) -> Tensor:
            return _naive(q, kv[:n], kv[n:])[0].transpose(1, 2)

        of_q, *exact = forms.gradients(again, [q, *others], grad)
        return of_q, [*exact[:n]], [*exact[n:]], None
    later = sum_later(ctx.are_shared)
    wanted = [not each for each in later]
    *given, of_mean, of_scores = _backward_op(grad, q, keys, values, out, weights, wanted, ctx.kernel)
    of_sources = (x.transpose(1, 2) for x in given)
    found: list[Tensor | None] = [None if is_later else next(of_sources) for is_later in later]
    if any(later):
        mean_q = mean_query(q, keys[0].size(1)).transpose(1, 2).contiguous()
        for number, (weight, vector) in enumerate(_reads(of_scores, mean_q, weights, grad.contiguous())):
            if later[number]:
                read = Read(vector.transpose(1, 2), weight.transpose(1, 2))
                found[number] = unsummed(others[number], (read,), ctx.kernel)
    group = q.size(1) // keys[0].size(1)
    of_q = (of_mean.transpose(1, 2) / group).to(q.dtype).repeat_interleave(group, dim=1)
    return of_q, found[:n], found[n:], None


_op.register_autograd(_backward, setup_context=_keep)
