"""Attention over the sequence: who sees whom, and the backends that compute it, by name.

Shapes: B batch, H query heads, G key/value heads, T query tokens, S key tokens, d head_dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.errors import BackendError
from mixerzoo.model.flash import attended_dtype, flash, takes
from mixerzoo.model.fused_flex import fused_flex

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BackendName: TypeAlias = Literal["sdpa", "eager", "flex", "flash", "xformers"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

#: Pairs of query and key, all rows together, whose visibility is there at a time where no gradients are wanted.
MOST_PAIRS = 2**24
#: What they take: PyTorch adds a mask to the scores as a copy in their dtype.
MOST_MASK_BYTES = 5 * MOST_PAIRS


class Visibility(NamedTuple):
    """Which keys each query may see, kept as positions so that a backend need not build [T, S].

    A query sees a key that is not later than itself, not padding, within the window, and of its own
    document. It always sees itself, so that no softmax is empty.

    Attributes:
        queries: absolute positions int64 [T].
        keys: absolute positions int64 [S]; negative where storage was never filled.
        window: how many most recent positions are visible, or None for all.
        padding: int64 [B], number of padding tokens on the left of each row, or None.
        documents: int64 [B, any] document of the token at each position from 0, or None.
        last: the queries are the last T of the keys, so plain causal attention is the whole rule when nothing else
            is set.
    """

    queries: Tensor
    keys: Tensor
    window: int | None
    padding: Tensor | None
    documents: Tensor | None
    last: bool

    @property
    def square(self) -> bool:
        """Queries and keys are the same tokens."""
        return self.last and self.queries.size(0) == self.keys.size(0)

    @property
    def causal_only(self) -> bool:
        """Plain causal attention of the last T of S tokens says it all."""
        return self.last and self.window is None and self.padding is None and self.documents is None

    def visible(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether batch row ``row`` lets query number ``query`` see key number ``key`` (broadcast)."""
        q, k = self.queries[query], self.keys[key]
        seen = (k <= q) & (k >= 0)
        if self.window is not None:
            seen = seen & (k > q - self.window)
        if self.padding is not None:
            seen = seen & (k >= self.padding[row])
        if self.documents is not None:
            seen = seen & (self.documents[row, q] == self.documents[row, k])
        return seen | (k == q)

    @property
    def batch_size(self) -> int | None:
        """B where rows differ, None where one rule serves all."""
        differing = self.padding if self.padding is not None else self.documents
        return None if differing is None else differing.size(0)

    def dense(self) -> Tensor:
        """The rule as booleans [B or 1, 1, T, S], True where visible."""
        device = self.queries.device
        row = torch.arange(self.batch_size or 1, device=device)[:, None, None, None]
        query = torch.arange(self.queries.size(0), device=device)[:, None]
        key = torch.arange(self.keys.size(0), device=device)
        # Where rows do not differ, `visible` leaves their dimensions out.
        return self.visible(row, query, key).expand(row.size(0), 1, query.size(0), key.size(0))

    def parts(self, size: int) -> Iterator[tuple[slice, slice, Visibility]]:
        """Some queries of the last tokens at a time, the keys that any of them may see, and who sees whom.

        Args:
            size: queries at a time.
        """
        num_queries, num_keys = self.queries.size(0), self.keys.size(0)
        earlier = num_keys - num_queries
        for start in range(0, num_queries, size):
            stop = min(start + size, num_queries)
            first = 0 if self.window is None else max(0, earlier + start + 1 - self.window)
            queries, keys = slice(start, stop), slice(first, earlier + stop)
            yield queries, keys, self._replace(queries=self.queries[queries], keys=self.keys[keys])


class AttentionMask(NamedTuple):
    """A `Visibility` in the form that a backend reads, built once per forward and shared by all layers.

    Attributes:
        visibility: the rule.
        dense: bool [B or 1, 1, T, S], or None where the rule is plain causal or hides nothing.
        blocks: flex attention's form, which lets it skip blocks that are hidden whole.
        causal: each query sees the keys up to its own, and no dense form says so.
        at_a_time: queries of which a backend is given the dense form at a time, where that of all is too large.
    """

    visibility: Visibility
    dense: Tensor | None = None
    blocks: BlockMask | None = None
    causal: bool = False
    at_a_time: int | None = None

    def parts(self) -> Iterator[tuple[slice, slice, AttentionMask]]:
        """Queries, the keys that any of them may see, and their mask, ``at_a_time`` of them at a time."""
        assert self.at_a_time is not None
        for queries, keys, rule in self.visibility.parts(self.at_a_time):
            yield queries, keys, AttentionMask(rule, rule.dense())


Backend: TypeAlias = Callable[[Tensor, Tensor, Tensor, AttentionMask, float], Tensor]


def make_mask(visibility: Visibility, backend: BackendName, hides_nothing: bool) -> AttentionMask:
    """Build what ``backend`` needs of the rule.

    Args:
        visibility: the rule.
        backend: name of the backend that will read it.
        hides_nothing: the caller knows that every query sees every key (one new token, no window, no
            padding).
    """
    if backend == "flash":
        _check_flash(visibility, hides_nothing)
        return AttentionMask(visibility)
    if hides_nothing:
        return AttentionMask(visibility)
    if backend == "flex":
        return AttentionMask(visibility, blocks=_blocks(visibility))
    if visibility.causal_only and visibility.square and backend != "eager":
        return AttentionMask(visibility, causal=True)
    num_queries, num_keys = visibility.queries.size(0), visibility.keys.size(0)
    pairs_of_a_query = (visibility.batch_size or 1) * num_keys
    # With gradients one mask is kept for all layers, and a compiled step has few queries.
    apart = visibility.last and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if apart and num_queries * pairs_of_a_query > MOST_PAIRS:
        some = max(1, MOST_PAIRS // pairs_of_a_query)
        return AttentionMask(visibility, causal=visibility.causal_only, at_a_time=some)
    return AttentionMask(visibility, visibility.dense())


def needs_mask(backend: BackendName, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> bool:
    """Whether a backend must be given who sees whom, where `AttentionMask.at_a_time` says how much of it at a time.

    Args:
        backend: who attends.
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, e].
        mask: who sees whom.
    """
    # Flash attention knows the rule of the last of longer sequences.
    return not (backend == "sdpa" and mask.causal and takes(q, k, v))


def ungrouped(q: Tensor, k: Tensor, v: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """Keys and values of every query head where PyTorch's attention would keep all scores of grouped ones.

    On CUDA its flash attention knows no masks and no long dtypes, and its memory-efficient attention no groups.

    Args:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, e].
        masked: a mask says who sees whom.
    """
    group = q.size(1) // k.size(1)
    if not q.is_cuda or group == 1 or not (masked or not takes(q, k, v)):
        return k, v
    return k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)


def _check_flash(visibility: Visibility, hides_nothing: bool) -> None:
    """Refuse what is not causal attention of the last tokens alone."""
    parts = {
        "a window": visibility.window,
        "left padding": visibility.padding,
        "documents": visibility.documents,
    }
    found = [name for name, part in parts.items() if part is not None]
    if torch.compiler.is_compiling() and not (visibility.last or hides_nothing):
        found.append("a cache of fixed length in a compiled step")
    if found:
        raise BackendError(
            f"the attention backend 'flash' knows earlier tokens from later ones and nothing of {found[0]}; "
            "set model.attention_backend to 'sdpa' (or 'flex')"
        )


def _blocks(visibility: Visibility) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visibility.visible(b, query, key)

    sizes = visibility.queries.size(0), visibility.keys.size(0)
    return create_block_mask(visible, visibility.batch_size, None, *sizes, device=visibility.queries.device)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Attention written out: scores, mask, softmax (float32, or float64 for float64 inputs), mix.

    Args:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, d].
        mask: who sees whom.
        scale: factor of the scores.

    Returns:
        [B, H, T, d].
    """
    weights = attention_weights(q, k, mask, scale)
    return weights.to(v.dtype) @ v.repeat_interleave(q.size(1) // k.size(1), dim=1)


def attention_weights(q: Tensor, k: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Weights [B, H, T, S] of eager attention, in float32, or float64 for float64 inputs; arguments as there."""
    scores = (q @ k.repeat_interleave(q.size(1) // k.size(1), dim=1).transpose(-1, -2)) * scale
    dense = mask.dense
    if dense is None and (mask.blocks is not None or mask.at_a_time is not None or mask.causal):
        dense = mask.visibility.dense()
    if dense is not None:
        scores = scores.masked_fill(~dense, float("-inf"))
    exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return scores.softmax(dim=-1, dtype=exact)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """PyTorch's `scaled_dot_product_attention`; arguments as in `eager_attention`."""
    from torch.nn.attention.bias import causal_lower_right

    num_queries, group = q.size(2), q.size(1) // k.size(1)
    if num_queries == 1 and group > 1:
        # The heads of a group are queries of the same keys, which no kernel then reads twice.
        out = F.scaled_dot_product_attention(
            q.reshape(*k.shape[:2], group, -1), k, v, attn_mask=mask.dense, scale=scale
        )
        return out.reshape(*q.shape[:3], -1)
    k, v = ungrouped(q, k, v, masked=mask.dense is not None)
    options: dict[str, Any] = {"attn_mask": mask.dense}
    if mask.causal and mask.visibility.square:
        options = {"is_causal": True}
    elif mask.causal:
        # Chosen by dtypes before autocast changes them.
        q, k, v = (x.to(attended_dtype(q)) for x in (q, k, v))
        options = {"attn_mask": causal_lower_right(num_queries, k.size(2))}
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.size(1) != k.size(1), **options)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """PyTorch's flex attention: a fused kernel on CUDA, its unfused reference elsewhere.

    Arguments as in `eager_attention`.
    """
    from torch.nn.attention.flex_attention import flex_attention as unfused

    options: dict[str, Any] = {
        "block_mask": mask.blocks,
        "scale": scale,
        "enable_gqa": q.size(1) != k.size(1),
    }
    out: Tensor
    if torch.compiler.is_compiling():
        out = unfused(q, k, v, **options)
    elif q.is_cuda:
        rule = mask.visibility
        parts = (rule.window, rule.padding is None, rule.documents is None)
        out = fused_flex(q, k, v, options.pop("block_mask"), parts, **options)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            out = unfused(q, k, v, **options)
    return out


def flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """PyTorch's flash attention, on CUDA in bfloat16 or float16; arguments as in `eager_attention`."""
    return flash(q, k, v, scale)


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """xformers' `memory_efficient_attention` with grouped heads; arguments as in `eager_attention`."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    batch, num_heads, num_queries, head_dim = q.shape
    num_kv_heads, num_keys = k.size(1), k.size(2)
    group = num_heads // num_kv_heads

    def grouped(x: Tensor) -> Tensor:
        return x.transpose(1, 2)[:, :, :, None].expand(batch, num_keys, num_kv_heads, group, head_dim)

    q = q.view(batch, num_kv_heads, group, num_queries, head_dim).permute(0, 3, 1, 2, 4)
    bias: Any = None
    if mask.causal:
        bias = LowerTriangularMask()
    elif mask.dense is not None:
        # The kernels want rows that start at multiples of 8 elements.
        padded = -(-num_keys // 8) * 8
        full = (batch, num_kv_heads, group, num_queries, padded)
        bias = q.new_zeros(full)[..., :num_keys]
        bias.masked_fill_(~mask.dense[:, :, None], float("-inf"))
    out: Tensor = memory_efficient_attention(q, grouped(k), grouped(v), attn_bias=bias, scale=scale)
    return out.permute(0, 2, 3, 1, 4).reshape(batch, num_heads, num_queries, head_dim)


_FUNCTIONS: dict[BackendName, Backend] = {
    "sdpa": sdpa_attention,
    "eager": eager_attention,
    "flex": flex_attention,
    "flash": flash_attention,
    "xformers": xformers_attention,
}


def backend_function(name: BackendName) -> Backend:
    """The attention function of a backend."""
    return _FUNCTIONS[name]
