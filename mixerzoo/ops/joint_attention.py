"""One softmax over the sequence and over entries of each token's own depth: what mixtures of depths attend with.

Nothing of size T × S is kept, nor any copy of the entries. Letters in shapes: B batch, H query heads, G key/value
heads, T query tokens, S key tokens, N entries along depth, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixerzoo.ops import forms, sequence_attention
from mixerzoo.ops.flops import Shape
from mixerzoo.ops.sequence_attention import grouped

#: Tokens whose entries lie beside each other in memory at a time.
CHUNK = 2048


def attention_with_depth(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    scale: float,
    depth_k: Sequence[Tensor],
    depth_v: Sequence[Tensor],
    *,
    causal: bool = False,
) -> Tensor:
    """Σ_s α_s·v_s + Σ_n β_n·v_n with (α, β) = softmax over the scores of both.

    Args:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, d].
        visible: bool [B or 1, 1, T, S], True where a query sees a key of the sequence; None: as ``causal`` says.
        scale: factor of the scores.
        depth_k: N keys [B, G, T, d] of each query token; never stacked over all tokens.
        depth_v: N values [B, G, T, d].
        causal: without ``visible``: query t sees the keys up to t of T = S, else all.

    Returns:
        [B, H, T, d].
    """
    q, k, v = _as_attention_reads(q, k, v)
    # One token has one row of scores, and a compiler fuses them.
    if forms.forced_form() == "naive" or (q.size(2) == 1 and forms.forced_form() is None):
        return _naive(q, k, v, visible, causal, scale, depth_k, depth_v)
    out, _ = _op(q, k, v, visible, causal, scale, list(depth_k), list(depth_v))
    return out.transpose(1, 2)  # type: ignore[no-any-return]


def _as_attention_reads(*each: Tensor) -> list[Tensor]:
    """As PyTorch's own attention reads them: under autocast, in its dtype."""
    kind = each[0].device.type
    if each[0].is_meta or not torch.is_autocast_enabled(kind):
        return list(each)
    dtype = torch.get_autocast_dtype(kind)
    return [x if x.dtype == torch.float64 else x.to(dtype) for x in each]


def _naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float,
    depth_k: Sequence[Tensor],
    depth_v: Sequence[Tensor],
) -> Tensor:
    keys, values = torch.stack(list(depth_k), dim=3), torch.stack(list(depth_v), dim=3)
    queries = grouped(q, k.size(1))
    scores = torch.einsum("bghtd,bgsd->bghts", queries, k) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], float("-inf"))
    elif causal:
        later = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    depth_scores = torch.einsum("bghtd,bgtnd->bghtn", queries, keys.to(q.dtype)) * scale
    joint = torch.cat([scores, depth_scores], dim=-1)
    weights = joint.softmax(dim=-1, dtype=forms.exact_dtype(scores)).to(v.dtype)
    mixed = torch.einsum("bghts,bgsd->bghtd", weights[..., : k.size(2)], v)
    mixed = mixed + torch.einsum("bghtn,bgtnd->bghtd", weights[..., k.size(2) :], values.to(v.dtype))
    return mixed.flatten(1, 2)


@torch.library.custom_op("mixerzoo::attention_with_depth", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float,
    depth_k: list[Tensor],
    depth_v: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The output [B, T, H, d], and the log-sum-exp [B, H, T] of the joint softmax."""
    sequence = sequence_attention.sequence_of(q, k, v, visible, causal, scale)
    out, of_sequence = sequence_attention.attend(sequence)
    mixed, totals = torch.empty_like(out.transpose(1, 2), memory_format=torch.contiguous_format), []
    with forms.no_autocast(q):
        for some, queries, keys, values in _entries(q, depth_k, depth_v):
            scores = queries @ keys.mT * scale
            before = _rows(of_sequence, some, k.size(1))
            total = torch.logaddexp(before, scores.logsumexp(-1))
            added = (scores - total.unsqueeze(-1)).exp_() @ values
            kept = _rows(out, some, k.size(1)) * (before - total).exp_().unsqueeze(-1)
            mixed[:, some] = added.add_(kept).flatten(2, 3)
            totals.append(total.flatten(2, 3))
    return mixed, torch.cat(totals, dim=1).transpose(1, 2).contiguous()


@_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float,
    depth_k: list[Tensor],
    depth_v: list[Tensor],
) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, _ = q.shape
    out = v.new_empty((batch, tokens, heads, v.size(-1)))
    return out, q.new_empty((batch, heads, tokens), dtype=forms.exact_dtype(q))


@torch.library.custom_op("mixerzoo::attention_with_depth_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float,
    depth_k: list[Tensor],
    depth_v: list[Tensor],
    out: Tensor,
    total: Tensor,
) -> list[Tensor]:
    """Gradients of q, k, v, then of the entries' keys and values."""
    sequence = sequence_attention.sequence_of(q, k, v, visible, causal, scale)
    grad, out = grad.transpose(1, 2), out.transpose(1, 2)
    of_q, of_k, of_v = sequence_attention.attend_backward(sequence, grad, out, total)
    of_q = of_q.to(forms.exact_dtype(q))
    of_keys, of_values = ([x.new_empty(x.shape) for x in xs] for xs in (depth_k, depth_v))
    with forms.no_autocast(q):
        for some, queries, keys, values in _entries(q, depth_k, depth_v):
            g = _rows(grad, some, k.size(1))
            weights = (queries @ keys.mT * scale - _rows(total, some, k.size(1)).unsqueeze(-1)).exp_()
            mean = (g * _rows(out, some, k.size(1))).sum(-1, keepdim=True)
            of_scores = weights * (g @ values.mT - mean) * scale
            of_q[:, :, some] += (of_scores @ keys).flatten(2, 3).transpose(1, 2)
            _spread(of_keys, of_scores.mT @ queries, some)
            _spread(of_values, weights.mT @ g, some)
    return [of_q.to(q.dtype).contiguous(), of_k.contiguous(), of_v.contiguous(), *of_keys, *of_values]


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float,
    depth_k: list[Tensor],
    depth_v: list[Tensor],
    out: Tensor,
    total: Tensor,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v, *depth_k, *depth_v)]


def _rows(x: Tensor, some: slice, num_kv_heads: int) -> Tensor:
    """[B, some, G, H / G, …] of x [B, H, T, …], in the exact dtype."""
    return grouped(x[:, :, some].to(forms.exact_dtype(x)), num_kv_heads).movedim(3, 1)


def _entries(
    q: Tensor, depth_k: Sequence[Tensor], depth_v: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some tokens at a time: their queries [B, some, G, H / G, d], keys and values [B, some, G, N, d], exactly."""
    exact = forms.exact_dtype(q)
    for first in range(0, q.size(2), CHUNK):
        some = slice(first, first + CHUNK)
        keys, values = (
            torch.stack([x[:, :, some].to(exact) for x in xs], dim=3).transpose(1, 2) for xs in (depth_k, depth_v)
        )
        yield some, _rows(q, some, depth_k[0].size(1)), keys, values


def _spread(targets: Sequence[Tensor], found: Tensor, some: slice) -> None:
    """Give each of N targets [B, G, T, d] its part of [B, some, G, N, d]."""
    for n, target in enumerate(targets):
        target[:, :, some] = found[..., n, :].transpose(1, 2)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, visible, ctx.causal, ctx.scale, depth_k, depth_v = inputs
    ctx.num_entries, ctx.has_mask = len(depth_k), visible is not None
    ctx.mark_non_differentiable(output[1])
    # What comes out is kept by the projection that reads it in any case; one mask serves all layers.
    ctx.save_for_backward(q, k, v, *depth_k, *depth_v, *output, *([] if visible is None else [visible]))


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    n = ctx.num_entries
    saved = ctx.saved_tensors  # once: activation checkpointing gives them a single time
    (q, k, v), depth_k, depth_v = saved[:3], list(saved[3 : 3 + n]), list(saved[3 + n : 3 + 2 * n])
    out, total, *masks = saved[3 + 2 * n :]
    visible = masks[0] if masks else None
    if torch.is_grad_enabled():

        def again(q: Tensor, k: Tensor, v: Tensor, *depth: Tensor) -> Tensor:
            out = _naive(q, k, v, visible, ctx.causal, ctx.scale, list(depth[:n]), list(depth[n:]))
            return out.transpose(1, 2)

        found = forms.gradients(again, [q, k, v, *depth_k, *depth_v], grad)
    else:
        found = _backward_op(grad, q, k, v, visible, ctx.causal, ctx.scale, depth_k, depth_v, out, total)
    return *found[:3], None, None, None, found[3 : 3 + n], found[3 + n :]


_op.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.mixerzoo.attention_with_depth)
def _(
    q: Shape, k: Shape, v: Shape, visible: Any, causal: bool, scale: float, depth_k: Sequence[Shape], *_: Any, **__: Any
) -> int:
    scores, mixed = _flops(q, k, v, len(depth_k))
    return scores + mixed


@register_flop_formula(torch.ops.mixerzoo.attention_with_depth_backward)
def _(
    grad: Shape,
    q: Shape,
    k: Shape,
    v: Shape,
    visible: Any,
    causal: bool,
    scale: float,
    depth_k: Sequence[Shape],
    *_: Any,
    **__: Any,
) -> int:
    scores, mixed = _flops(q, k, v, len(depth_k))
    return 3 * scores + 2 * mixed


def _flops(q: Shape, k: Shape, v: Shape, num_entries: int) -> tuple[int, int]:
    """Of the scores of a sequence and of entries, and of their values."""
    pairs = math.prod(q[:-1]) * (k[-2] + num_entries)
    return 2 * pairs * q[-1], 2 * pairs * v[-1]
