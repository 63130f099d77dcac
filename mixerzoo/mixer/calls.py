"""What passes between a decoder and its mixer.

Letters in shapes: B batch, T tokens of this call, D hidden size, H query heads, G key/value heads, d head_dim,
N sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from mixerzoo.mixer.shape import Site

#: A mixer's state: a tensor or a (named, possibly nested) tuple of tensors. It is a value: passed in,
#: returned, never mutated, never kept on a module.
State: TypeAlias = Any


class Context(NamedTuple):
    """What a forward knows besides the embeddings.

    Attributes:
        tokens: token ids, int64 [B, T], or None where the caller passed embeddings instead.
        earlier: for a mixer whose plan has a tail of n vectors: n tensors [B, T, width], entry i − 1 with the vectors
            of the tokens i places before, and zeros where there is no such token: at the beginning of a sequence, of
            a packed document, and after padding. Else empty.
    """

    tokens: Tensor | None
    earlier: tuple[Tensor, ...] = ()


class AttentionInputs(NamedTuple):
    """Separate inputs [B, T, D] for the query, key and value projections of one attention sublayer.

    The layer's input norm is applied to each.
    """

    q: Tensor
    k: Tensor
    v: Tensor


class AttentionCall(NamedTuple):
    """What the attention hooks of a mixer are told.

    Attributes:
        site: an attention site.
        stream: what the mixer let the sublayer read, before its input norm: [B, T, D], or three.
        x: the same after the norm, which the projections read.
        q: queries [B, H, T, d], after head norm and RoPE.
        k: keys [B, G, T, d]: projected ones in `Mixer.mix_raw_kv`, else after head norm and RoPE. `Mixer.depth_kv`
            finds what is attended to there, and None where the step has no keys of its own.
        v: values [B, G, T, d], likewise.
        rotate: applies the tokens' RoPE to heads [B, any, T, d] that have none yet.
    """

    site: Site
    stream: Tensor | AttentionInputs
    x: Tensor | AttentionInputs
    q: Tensor
    k: Any
    v: Any
    rotate: Callable[[Tensor], Tensor]


class DepthEntries(NamedTuple):
    """Keys and values of a token's own depth that join its softmax over the sequence.

    Attributes:
        k: N keys [B, G, T, d], as the query is compared with them: after RoPE. Or all in one tensor [B, G, T, N, d],
            of which training then keeps a copy for each step.
        v: N values, likewise.
    """

    k: tuple[Tensor, ...] | Tensor
    v: tuple[Tensor, ...] | Tensor

    def each(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values, each one by one."""
        k, v = (x.unbind(3) if isinstance(x, Tensor) else tuple(x) for x in (self.k, self.v))
        return k, v


class MixingWeights(NamedTuple):
    """How a mixer weighs its sources at one site, for inspection.

    Attributes:
        weights: [N], or [B, T, N], or for heads [B, G, T, N]; Σ_i weights_i · sources_i is what the site gets.
        sources: N tensors, [B, T, D] each, or heads [B, G, T, d].
        names: whose outputs they are, None the embedding, and of keys and values the attention that they are of; empty:
            as `Mixer.sources` says of the site, where those are as many. None: they have no names.
        channels: [N, D], for heads [N, d]: what is added to the weights of each channel; None: nothing.
    """

    weights: Tensor
    sources: tuple[Tensor, ...]
    names: tuple[Site | None, ...] | None = ()
    channels: Tensor | None = None

    def named(self, sources: tuple[Site | None, ...]) -> tuple[Site | None, ...] | None:
        """One name for each source, or None where they have none.

        Args:
            sources: as `Mixer.sources` says of the site.
        """
        if self.names or self.names is None:
            return self.names
        return sources if len(sources) == len(self.sources) else None

    def parts(self) -> tuple[Tensor, ...]:
        """Every source as it is weighed; the site gets their sum."""
        weights = [self.weights[..., n, None] for n in range(len(self.sources))]
        if self.channels is not None:
            weights = [each + channels for each, channels in zip(weights, self.channels, strict=True)]
        return tuple(each * source for each, source in zip(weights, self.sources, strict=True))
