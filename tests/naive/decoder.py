"""A decoder that handles one token after another.

Letters: D hidden size, H query heads, G key/value heads, d head_dim, V vocabulary, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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
        k_slot: the step whose keys each step attends to; None: its own.
        v_slot: the step whose values each step attends to; None: its own.
        windows: how many most recent tokens (the present one included) can be seen in the keys and values of
            each step; None: all.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    order: tuple[int, ...]
    norm_eps: float
    rope_theta: float = 10000.0
    k_norm: str = "pre_rope"
    scale_embeddings: bool = False
    k_slot: tuple[int, ...] | None = None
    v_slot: tuple[int, ...] | None = None
    windows: tuple[int | None, ...] | None = None


class TokenMixer(Protocol):
    """How one token's vector travels through the depth of the decoder.

    It is made from the token's embedding [D], and then called, for every step: `read`, `mix_value`, `write`
    (attention), `read`, `write` (MLP); at the end `finish`.
    """

    def read(self) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """The vector [D] that the next sublayer's norm reads.

        For attention there may be three: for the query, key and value projections.
        """

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        """The values that attention reads in place of v. Not called where a step borrows keys or values.

        Args:
            layer: the physical layer.
            q: H queries [d], after head norm and RoPE.
            k: G keys [d], after head norm and RoPE.
            v: G raw values [d].
        """

    def write(self, y: Tensor) -> None:
        """Take in the output [D] of the sublayer."""

    def finish(self) -> Tensor:
        """The vector [D] that the final norm reads."""


class Trace(NamedTuple):
    """A run over one sequence.

    Attributes:
        logits: [T, V].
        values: values[step][t][g], the value [d] that attention reads: after mixing. Empty for steps that
            borrow values.
        mixers: the mixer of each token.
    """

    logits: Tensor
    values: list[list[list[Tensor]]]
    mixers: list[TokenMixer]


def run(
    weights: Mapping[str, Tensor], sizes: Sizes, begin: Callable[[Tensor], TokenMixer], tokens: Sequence[int]
) -> Trace:
    """Run one sequence.

    Args:
        weights: float64 tensors by their Hugging Face names. Without ``lm_head.weight`` the head is the
            embedding; with ``….self_attn.q_norm.weight`` query and key heads are normed.
        sizes: see `Sizes`.
        begin: makes the mixer of a token from its embedding [D].
        tokens: T token ids.
    """
    embedding = weights["model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", embedding)
    keys: list[list[list[Tensor]]] = [[] for _ in sizes.order]
    values: list[list[list[Tensor]]] = [[] for _ in sizes.order]
    steps = tuple(range(len(sizes.order)))
    k_slot, v_slot, windows = sizes.k_slot or steps, sizes.v_slot or steps, sizes.windows or (None,) * len(steps)
    logits, mixers = [], []
    for position, token in enumerate(tokens):
        x = embedding[token]
        if sizes.scale_embeddings:
            x = x * math.sqrt(len(x))
        mixer = begin(x)
        for step, layer in enumerate(sizes.order):
            prefix = f"model.layers.{layer}."
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}

            x = mixer.read()
            inputs = x if isinstance(x, tuple) else (x, x, x)
            x_q, x_k, x_v = (rms_norm(part, own["input_layernorm.weight"], sizes.norm_eps) for part in inputs)
            q = queries(own, sizes, position, x_q)
            if k_slot[step] == step:
                k = new_keys(own, sizes, position, x_k)
                keys[step].append(k)
            if v_slot[step] == step:
                v = heads_of(own["self_attn.v_proj.weight"] @ x_v, sizes)
                if k_slot[step] == step:
                    v = mixer.mix_value(layer, q, k, v)
                values[step].append(v)
            first_seen = max(0, position + 1 - (windows[k_slot[step]] or position + 1))
            heads = attend(q, keys[k_slot[step]][first_seen:], values[v_slot[step]][first_seen:])
            mixer.write(own["self_attn.o_proj.weight"] @ torch.cat(heads))

            x = mixer.read()
            assert isinstance(x, Tensor)
            mixer.write(swiglu(own, rms_norm(x, own["post_attention_layernorm.weight"], sizes.norm_eps)))
        logits.append(head @ rms_norm(mixer.finish(), weights["model.norm.weight"], sizes.norm_eps))
        mixers.append(mixer)
    return Trace(torch.stack(logits), values, mixers)


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
    return list(x.split(sizes.head_dim))


def queries(own: Mapping[str, Tensor], sizes: Sizes, position: int, x: Tensor) -> list[Tensor]:
    """H queries [d] of one token: head norm (where there is one), then RoPE.

    Args:
        own: weights of the layer.
        sizes: see `Sizes`.
        position: of the token, from 0.
        x: the normed input [D].
    """
    heads = head_norm(own, "q", sizes, heads_of(own["self_attn.q_proj.weight"] @ x, sizes))
    assert len(heads) == sizes.num_heads
    return [rotate(head, position, sizes.rope_theta) for head in heads]


def new_keys(own: Mapping[str, Tensor], sizes: Sizes, position: int, x: Tensor) -> list[Tensor]:
    """G keys [d] of one token: head norm and RoPE in the order of ``k_norm``. Arguments as in `queries`."""
    heads = heads_of(own["self_attn.k_proj.weight"] @ x, sizes)
    assert len(heads) == sizes.num_kv_heads
    if sizes.k_norm == "pre_rope":
        return [rotate(head, position, sizes.rope_theta) for head in head_norm(own, "k", sizes, heads)]
    assert sizes.k_norm == "post_rope"
    return head_norm(own, "k", sizes, [rotate(head, position, sizes.rope_theta) for head in heads])


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
        keys: keys[t][g] [d], of the tokens that it sees; itself last.
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
