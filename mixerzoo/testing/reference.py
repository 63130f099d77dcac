"""A naive decoder: one token after another, written from the equations.

It is what the library is held against, so it uses torch alone and nothing of the library's decoder. Every
vector is a 1-D float64 tensor; loops over tokens, layers, heads and sources are Python loops. The author of a
mixer subclasses `TokenMixer` in the same manner.

Letters: D hidden size, H query heads, G key/value heads, d head_dim, V vocabulary, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mixerzoo.testing.equations import (
    Latent,
    Rotation,
    Sizes,
    attend,
    head_norm,
    heads_of,
    latent_heads,
    latent_queries,
    new_latent,
    normed_keys,
    queries,
    rms_norm,
    rotate,
    softmax,
    swiglu,
    weighted_sum,
)

__all__ = [
    "Begin",
    "Heads",
    "Latent",
    "Rotation",
    "Sizes",
    "TokenMixer",
    "Trace",
    "Vectors",
    "attend",
    "head_norm",
    "heads_of",
    "latent_heads",
    "latent_queries",
    "new_latent",
    "normed_keys",
    "queries",
    "rms_norm",
    "rotate",
    "run",
    "softmax",
    "swiglu",
    "weighted_sum",
]


#: One vector [D], or three: for the query, key and value projections.
Vectors: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor]
#: Entries of G vectors [d] each.
Heads: TypeAlias = list[list[Tensor]]


class TokenMixer:
    """How one token's vector travels through the depth of the decoder. This base is the plain residual stream.

    One is made for every token. For every step it is asked: `read`, `mix_raw_kv`, `mix_kv`, `depth_kv`, `write`
    (attention), `read`, `write` (MLP); at the end `finish`. A subclass keeps what it must remember on itself. When the
    hooks of an attention are asked, ``self.normed`` has what its projections read: three vectors [D], for q, k and v.

    ``step`` is the unrolled depth from 0, ``layer`` the physical layer whose weights run there (another number in
    looped decoders), ``branch`` is "attention" or "mlp".

    Args:
        embedding: of the token [D].
    """

    normed: tuple[Tensor, Tensor, Tensor]

    def __init__(self, embedding: Tensor) -> None:
        self.x = embedding

    def follow(self, before: Sequence[Any]) -> None:
        """Look at the mixers of the tokens before, the nearest last, once they are done and before this one begins."""

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        """The vector [D] that the sublayer's norm reads; for attention possibly three, for q, k and v."""
        return self.x

    def mix_raw_kv(self, step: int, layer: int, k: list[Tensor], v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What takes the place of the projected k and v, before head norm and RoPE.

        Not called where a step borrows keys or values.

        Args:
            step: from 0.
            layer: the physical layer.
            k: G projected keys [d].
            v: G projected values [d].
        """
        return k, v

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The keys and values that attention reads and the cache holds, in place of k and v.

        Not called where a step borrows keys or values.

        Args:
            step: from 0.
            layer: the physical layer.
            q: H queries [d], after head norm and RoPE.
            k: G keys [d], after head norm and RoPE.
            v: G values [d].
        """
        return k, v

    def fuse_kv(
        self, step: int, layer: int, keys: list[list[Tensor]], values: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One token's keys and values, of any token so far, from those in all slots that a step reads.

        Args:
            step: from 0.
            layer: the physical layer.
            keys: G keys [d] of each slot, as they are stored.
            values: G values [d] of each slot.
        """
        raise NotImplementedError

    def depth_kv(self, step: int, layer: int, q: list[Tensor], rotate: Rotation) -> tuple[Heads, Heads]:
        """Keys and values of this token that join its softmax over the sequence: N entries of G vectors [d] each.

        Args:
            step: from 0.
            layer: the physical layer.
            q: H queries [d], after head norm and RoPE.
            rotate: gives a key [d] that has none yet the RoPE of this token.
        """
        return [], []

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        """Take in the output [D] of the sublayer."""
        self.x = self.x + y

    def finish(self) -> Tensor:
        """The vector [D] that the final norm reads."""
        return self.x


#: Makes the mixer of a token from its embedding [D] and its id.
Begin: TypeAlias = Callable[[Tensor, int], TokenMixer]


class Trace(NamedTuple):
    """A run over one sequence.

    Attributes:
        logits: [T, V].
        keys: keys[slot][t][g], the key [d] that the slot holds: after mixing. Empty for slots that nobody writes.
        values: likewise.
        mixers: the mixer of each token.
    """

    logits: Tensor
    keys: list[Heads]
    values: list[Heads]
    mixers: list[TokenMixer]


def run(weights: Mapping[str, Tensor], sizes: Sizes, begin: Begin, tokens: Sequence[int]) -> Trace:
    """Run one sequence.

    Args:
        weights: float64 tensors by their Hugging Face names. Without ``lm_head.weight`` the head is the
            embedding; with ``….self_attn.q_norm.weight`` query and key heads are normed.
        sizes: see `Sizes`.
        begin: makes the mixer of a token from its embedding [D] and its id.
        tokens: T token ids.
    """
    embedding = weights["model.embed_tokens.weight"]
    head = weights.get("lm_head.weight", embedding)
    prefixes = [f"model.layers.{layer}." for layer in range(max(sizes.order) + 1)]
    layers = [{n.removeprefix(p): w for n, w in weights.items() if n.startswith(p)} for p in prefixes]
    attention = _Attention(sizes)
    logits: list[Tensor] = []
    mixers: list[TokenMixer] = []
    for position, token in enumerate(tokens):
        x_0 = embedding[token]
        if sizes.scale_embeddings:
            x_0 = x_0 * math.sqrt(len(x_0))
        mixer = begin(x_0, token)
        mixer.follow(mixers)
        for step, layer in enumerate(sizes.order):
            own = layers[layer]
            mixer.write(step, layer, "attention", attention(mixer, own, step, layer, position))
            x = mixer.read(step, layer, "mlp")
            assert isinstance(x, Tensor)
            normed = rms_norm(x, own["post_attention_layernorm.weight"], sizes.norm_eps)
            mixer.write(step, layer, "mlp", swiglu(own, normed))
        logits.append(head @ rms_norm(mixer.finish(), weights["model.norm.weight"], sizes.norm_eps))
        mixers.append(mixer)
    return Trace(torch.stack(logits), attention.keys, attention.values, mixers)


class _Attention:
    """The attention of all steps, and the slots that they write and read."""

    def __init__(self, sizes: Sizes) -> None:
        steps = tuple(range(len(sizes.order)))
        alone = tuple((step,) for step in steps)
        self.sizes = sizes
        self.keys: list[Heads] = [[] for _ in steps]
        self.values: list[Heads] = [[] for _ in steps]
        self.latents: list[list[tuple[Tensor, Tensor]]] = [[] for _ in steps]
        self.k_writes, self.v_writes = sizes.k_writes or steps, sizes.v_writes or steps
        self.k_reads, self.v_reads = sizes.k_reads or alone, sizes.v_reads or alone
        self.windows = sizes.windows or (None,) * len(steps)

    def __call__(self, mixer: TokenMixer, own: Mapping[str, Tensor], step: int, layer: int, position: int) -> Tensor:
        """The output [D] of a step's attention for one token."""
        sizes = self.sizes
        turn = partial(rotate, position=position, theta=sizes.rope_theta)
        x = mixer.read(step, layer, "attention")
        inputs = x if isinstance(x, tuple) else (x, x, x)
        x_q, x_k, x_v = (rms_norm(part, own["input_layernorm.weight"], sizes.norm_eps) for part in inputs)
        mixer.normed = x_q, x_k, x_v
        k_slot, v_slot = self.k_writes[step], self.v_writes[step]
        k: list[Tensor] = []
        v: list[Tensor] = []
        if sizes.latent is None:
            q = queries(own, sizes, x_q, turn)
            k = k if k_slot is None else heads_of(own["self_attn.k_proj.weight"] @ x_k, sizes)
            v = v if v_slot is None else heads_of(own["self_attn.v_proj.weight"] @ x_v, sizes)
            if k and v:
                k, v = mixer.mix_raw_kv(step, layer, k, v)
            k = normed_keys(own, sizes, k, turn)
        else:
            q = latent_queries(own, sizes, x_q, turn)
            if k_slot is not None:
                latent = new_latent(own, sizes, x_k, turn)
                _put(self.latents, k_slot, position, latent)
                k, v = latent_heads(own, sizes, latent)
        if k and v:
            k, v = mixer.mix_kv(step, layer, q, k, v)
        _put(self.keys, k_slot, position, k)
        _put(self.values, v_slot, position, v)
        window = self.windows[self.k_reads[step][0]] or position + 1
        seen = self._seen(mixer, own, step, layer)[max(0, position + 1 - window) :]
        depth_k, depth_v = mixer.depth_kv(step, layer, q, turn)
        heads = attend(q, [k for k, _ in seen] + depth_k, [v for _, v in seen] + depth_v)
        return own["self_attn.o_proj.weight"] @ torch.cat(heads)

    def _seen(
        self, mixer: TokenMixer, own: Mapping[str, Tensor], step: int, layer: int
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Keys and values of every token so far, from the slots that a step reads."""
        if self.sizes.latent is not None and self.k_writes[step] is None:
            # What is shared is the latent; each layer expands it with weights of its own.
            return [latent_heads(own, self.sizes, latent) for latent in self.latents[self.k_reads[step][0]]]
        keys = [self.keys[slot] for slot in self.k_reads[step]]
        values = [self.values[slot] for slot in self.v_reads[step]]
        if self.sizes.latent is not None:
            values = values[-1:]
        if len(keys) == 1 and len(values) == 1:
            return list(zip(keys[0], values[0], strict=True))
        tokens = range(len(keys[0]))
        return [mixer.fuse_kv(step, layer, [slot[t] for slot in keys], [slot[t] for slot in values]) for t in tokens]


def _put(slots: list[list[Any]], slot: int | None, position: int, content: Any) -> None:
    """Put what a token has into a slot, in place of what an earlier step put there for it."""
    if slot is not None:
        slots[slot][position:] = [content]
