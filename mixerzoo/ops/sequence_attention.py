"""Attention over a sequence that tells the logarithm of each query's sum, and its backward for a larger softmax.

With the output and the log-sum-exp of a softmax over more entries, the backward of attention over the sequence gives
the gradients of the sequence's part of it: its weights are exp(score − log-sum-exp), whatever else was summed.
Letters in shapes: B batch, H query heads, G key/value heads, T query tokens, S key tokens, d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mixerzoo.ops import forms

#: Queries whose scores are there at a time where no fused kernel gives the log-sum-exp.
CHUNK = 128
#: Widest heads that the kernel on CUDA takes.
WIDEST = 256
#: Oldest devices that it runs on.
OLDEST = (8, 0)

Engine: TypeAlias = Literal["cpu", "flash", "chunks"]


class Sequence(NamedTuple):
    """What is attended to.

    Attributes:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, e].
        visible: bool [B or 1, 1, T, S]; None: what `causal` says.
        causal: with T = S, a query sees the keys that are not later; else all.
        scale: factor of the scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor | None
    causal: bool
    scale: float

    @property
    def engine(self) -> Engine:
        """What computes it."""
        if self.q.size(-1) != self.v.size(-1) or len({x.dtype for x in (self.q, self.k, self.v)}) > 1:
            return "chunks"
        if self.q.device.type == "cpu":
            return "cpu"
        fits = self.visible is None and self.q.size(-1) % 8 == 0 and self.q.size(-1) <= WIDEST
        if not (fits and self.q.is_cuda and self.q.dtype in (torch.float16, torch.bfloat16)):
            return "chunks"
        return "flash" if torch.cuda.get_device_capability(self.q.device) >= OLDEST else "chunks"

    @property
    def bias(self) -> Tensor | None:
        """The mask as kernels read it: added to the scores."""
        if self.visible is None:
            return None
        return torch.zeros_like(self.visible, dtype=self.q.dtype).masked_fill_(~self.visible, float("-inf"))

    def scores(self) -> Iterator[tuple[slice, Tensor]]:
        """Some queries at a time, and their scores [B, G, H / G, some, S] in the exact dtype."""
        exact = forms.exact_dtype(self.q)
        keys = self.k.to(exact).unsqueeze(2).mT
        place = torch.arange(self.k.size(2), device=self.q.device)
        for first in range(0, self.q.size(2), CHUNK):
            some = slice(first, first + CHUNK)
            scores = grouped(self.q[:, :, some].to(exact), self.k.size(1)) @ keys * self.scale
            if self.visible is not None:
                scores = scores.masked_fill(~self.visible[:, :, some].unsqueeze(1), float("-inf"))
            elif self.causal:
                scores = scores.masked_fill(place > place[some].unsqueeze(1), float("-inf"))
            yield some, scores


def sequence_of(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool, scale: float) -> Sequence:
    """A `Sequence` as kernels read it: the elements of a head lie beside each other."""
    return Sequence(_beside(q), _beside(k), _beside(v), visible, causal, scale)


def _beside(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def grouped(x: Tensor, num_kv_heads: int) -> Tensor:
    """[B, G, H / G, …] of [B, H, …]."""
    split: Tensor = x.unflatten(1, (num_kv_heads, -1))
    return split


def attend(sequence: Sequence) -> tuple[Tensor, Tensor]:
    """The output [B, H, T, e], and the log-sum-exp [B, H, T] in the exact dtype: −inf where a query sees nothing."""
    q, k, v, visible, causal, scale = sequence
    if sequence.engine == "flash":
        out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return out, total
    if sequence.engine == "cpu":
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=sequence.bias, scale=scale
        )
        # The kernel gives 0 where a query sees nothing.
        if visible is None:
            return out, total
        return out, total.masked_fill(~visible.any(-1), float("-inf"))
    outs, totals = [], []
    for _, scores in sequence.scores():
        total = scores.logsumexp(-1, keepdim=True)
        weights = (scores - total.masked_fill(total.isneginf(), 0)).exp_()
        outs.append((weights @ v.to(scores.dtype).unsqueeze(2)).to(v.dtype).flatten(1, 2))
        totals.append(total.squeeze(-1).flatten(1, 2))
    return torch.cat(outs, dim=2), torch.cat(totals, dim=2)


def attend_backward(sequence: Sequence, grad: Tensor, out: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of a softmax that has the sequence among its entries.

    Args:
        sequence: what was attended to.
        grad: [B, H, T, e], of ``out``.
        out: [B, H, T, e], of the whole softmax.
        total: log-sum-exp [B, H, T] of the whole softmax.
    """
    q, k, v, _, causal, scale = sequence
    grad, out = _beside(grad), _beside(out)
    if sequence.engine == "flash":
        # Ends of sequences are read where these differ in length, the state of a generator by dropout.
        seed, offset = (torch.zeros(size, dtype=torch.uint64, device=q.device) for size in (2, ()))
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(  # type: ignore[no-any-return]
            grad, q, k, v, out, total, None, None, q.size(2), k.size(2), 0.0, causal, seed, offset, scale=scale
        )
    if sequence.engine == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # type: ignore[no-any-return]
            grad, q, k, v, out, total, 0.0, causal, attn_mask=sequence.bias, scale=scale
        )
    exact, heads = forms.exact_dtype(q), k.size(1)
    keys, values = k.to(exact).unsqueeze(2), v.to(exact).unsqueeze(2)
    of_q, of_k, of_v = [], torch.zeros_like(keys), torch.zeros_like(values)
    for some, scores in sequence.scores():
        g = grouped(grad[:, :, some].to(exact), heads)
        weights = (scores - grouped(total[:, :, some, None], heads)).exp_()
        of_v += (weights.mT @ g).sum(2, keepdim=True)
        mean = (g * grouped(out[:, :, some].to(exact), heads)).sum(-1, keepdim=True)
        of_scores = weights.mul_(g @ values.mT - mean) * scale
        of_q.append((of_scores @ keys).flatten(1, 2))
        of_k += (of_scores.mT @ grouped(q[:, :, some].to(exact), heads)).sum(2, keepdim=True)
    return torch.cat(of_q, dim=2).to(q.dtype), of_k.squeeze(2).to(k.dtype), of_v.squeeze(2).to(v.dtype)
