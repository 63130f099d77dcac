"""The equations of the naive decoder, one token at a time.

Every vector is a 1-D float64 tensor. Letters: D hidden size, H query heads, G key/value heads, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Latent(NamedTuple):
    """Sizes of multi-head latent attention (arXiv 2405.04434).

    Attributes:
        rank: r, of the latent from which keys and values come.
        nope_dim: n, part of a query or key head without RoPE.
        rope_dim: p, part with RoPE; its key is shared by all heads.
        value_dim: u, of a value head.
    """

    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class Sizes(NamedTuple):
    """What the weights alone do not say.

    Attributes:
        num_heads: query heads H.
        num_kv_heads: key/value heads G. Query heads h·H/G … (h+1)·H/G − 1 share key/value head h.
        head_dim: d, even.
        order: physical layer of each step; (0, 1, …, L−1) unless layers are looped.
        norm_eps: ε of every RMSNorm.
        rope_theta: base of the rotary embedding.
        k_norm: "pre_rope" (the key norm comes before RoPE) or "post_rope" (after it).
        scale_embeddings: multiply embeddings by √D.
        k_writes: the slot, a number below that of the steps, that each step puts its own keys in, in place of what an
            earlier step put there for the same token, or None where it has no keys; None altogether: its own number.
        v_writes: likewise for values.
        k_reads: the slots whose keys each step attends to, fused if they are several; None: its own.
        v_reads: likewise for values. With latent attention the last one's alone.
        windows: how many most recent tokens (the present one included) can be seen in the keys and values of
            each slot; None: all.
        latent: sizes of latent attention, or None for grouped-query attention.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    order: tuple[int, ...]
    norm_eps: float
    rope_theta: float = 10000.0
    k_norm: str = "pre_rope"
    scale_embeddings: bool = False
    k_writes: tuple[int | None, ...] | None = None
    v_writes: tuple[int | None, ...] | None = None
    k_reads: tuple[tuple[int, ...], ...] | None = None
    v_reads: tuple[tuple[int, ...], ...] | None = None
    windows: tuple[int | None, ...] | None = None
    latent: Latent | None = None


#: RoPE at one token's position.
Rotation: TypeAlias = Callable[[Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / √(mean(x²) + eps).

    Args:
        x: [n].
        weight: [n].
        eps: ε.
    """
    return weight * x / torch.sqrt((x * x).mean() + eps)


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE: pair i, made of elements i and i + d/2, turns by position · theta^(−2i/d).

    Args:
        x: one head [d].
        position: of the token, from 0.
        theta: base.
    """
    half = len(x) // 2
    angle = torch.tensor([position * theta ** (-2 * i / len(x)) for i in range(half)], dtype=x.dtype)
    first, second = x[:half], x[half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])


def heads_of(x: Tensor, sizes: Sizes) -> list[Tensor]:
    """Cut a projection into heads [d].

    Args:
        x: [heads · d].
        sizes: see `Sizes`.
    """
    return list(torch.split(x, sizes.head_dim))


def head_norm(own: Mapping[str, Tensor], which: str, sizes: Sizes, heads: list[Tensor]) -> list[Tensor]:
    """RMSNorm of every head, where the layer has such a norm.

    Args:
        own: weights of the layer.
        which: "q" or "k".
        sizes: see `Sizes`.
        heads: vectors [d].
    """
    weight = own.get(f"self_attn.{which}_norm.weight")
    return heads if weight is None else [rms_norm(head, weight, sizes.norm_eps) for head in heads]


def queries(own: Mapping[str, Tensor], sizes: Sizes, x: Tensor, turn: Rotation) -> list[Tensor]:
    """H queries [d] of one token: head norm (where there is one), then RoPE.

    Args:
        own: weights of the layer.
        sizes: see `Sizes`.
        x: the normed input [D].
        turn: RoPE at the token's position.
    """
    return [turn(head) for head in head_norm(own, "q", sizes, heads_of(own["self_attn.q_proj.weight"] @ x, sizes))]


def normed_keys(own: Mapping[str, Tensor], sizes: Sizes, k: list[Tensor], turn: Rotation) -> list[Tensor]:
    """G keys [d] from projected ones: head norm and RoPE in the order of ``k_norm``.

    Args:
        own: weights of the layer.
        sizes: see `Sizes`.
        k: projected keys [d].
        turn: RoPE at the token's position.
    """
    if sizes.k_norm == "pre_rope":
        return [turn(head) for head in head_norm(own, "k", sizes, k)]
    assert sizes.k_norm == "post_rope"
    return head_norm(own, "k", sizes, [turn(head) for head in k])


def latent_queries(own: Mapping[str, Tensor], sizes: Sizes, x: Tensor, turn: Rotation) -> list[Tensor]:
    """H queries [n + p] of latent attention; the last p elements have RoPE.

    Args:
        own: weights of the layer.
        sizes: see `Sizes`.
        x: the normed input [D].
        turn: RoPE at the token's position.
    """
    assert sizes.latent is not None
    if "self_attn.q_proj.weight" in own:
        flat = own["self_attn.q_proj.weight"] @ x
    else:
        narrow = own["self_attn.q_a_proj.weight"] @ x
        flat = own["self_attn.q_b_proj.weight"] @ rms_norm(
            narrow, own["self_attn.q_a_layernorm.weight"], sizes.norm_eps
        )
    cut = sizes.latent.nope_dim
    return [torch.cat([head[:cut], turn(head[cut:])]) for head in torch.split(flat, cut + sizes.latent.rope_dim)]


def new_latent(own: Mapping[str, Tensor], sizes: Sizes, x: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
    """The normed latent [r] of a token and its key with RoPE [p]; arguments as in `latent_queries`."""
    assert sizes.latent is not None
    both = own["self_attn.kv_a_proj_with_mqa.weight"] @ x
    rank = sizes.latent.rank
    latent = rms_norm(both[:rank], own["self_attn.kv_a_layernorm.weight"], sizes.norm_eps)
    return latent, turn(both[rank:])


def latent_heads(
    own: Mapping[str, Tensor], sizes: Sizes, latent: tuple[Tensor, Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """H keys [n + p] and H values [u] from a token's latent.

    Args:
        own: weights of the layer.
        sizes: see `Sizes`.
        latent: as `new_latent` gives it.
    """
    assert sizes.latent is not None
    cut = sizes.latent.nope_dim
    heads = torch.split(own["self_attn.kv_b_proj.weight"] @ latent[0], cut + sizes.latent.value_dim)
    return [torch.cat([head[:cut], latent[1]]) for head in heads], [head[cut:] for head in heads]


def softmax(scores: Sequence[Tensor]) -> list[Tensor]:
    """exp(s_i) / Σ_j exp(s_j), with the maximum subtracted.

    Args:
        scores: n scalars.
    """
    highest = max(scores)
    powers = [torch.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def weighted_sum(weights: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Σ_i weights_i · vectors_i.

    Args:
        weights: n scalars.
        vectors: n vectors of one size.
    """
    total = torch.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total = total + weight * vector
    return total


def attend(q: list[Tensor], keys: list[list[Tensor]], values: list[list[Tensor]]) -> list[Tensor]:
    """Attention of one token over itself and what came before it: H vectors [d].

    Args:
        q: H queries [d].
        keys: keys[t][g] [d], of the tokens that it sees, and entries of its own depth.
        values: values[t][g] [d], likewise.
    """
    heads = []
    for h, query in enumerate(q):
        g = h * len(keys[0]) // len(q)
        scores = [query @ key[g] / math.sqrt(len(query)) for key in keys]
        heads.append(weighted_sum(softmax(scores), [value[g] for value in values]))
    return heads


def swiglu(own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """down(silu(gate(x)) · up(x)) [D], where silu(z) = z / (1 + e^−z).

    Args:
        own: weights of the layer.
        x: the MLP's normed input [D].
    """
    gate = own["mlp.gate_proj.weight"] @ x
    up = own["mlp.up_proj.weight"] @ x
    return own["mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)
