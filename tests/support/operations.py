"""Operations over depth on drawn leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from mixerzoo import ops
from mixerzoo.ops import forms

#: An operation of leaves, and the leaves.
Drawn = tuple[Callable[..., Tensor], list[Tensor]]
EPS = 1e-5
#: Largest relative error of a form against the equation in float64.
CLOSE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


def operation(name: str, num_sources: int, tokens: int, size: int, dtypes: list[torch.dtype], seed: int = 0) -> Drawn:
    """An operation on random leaves; ``dtypes`` are those of the first source and of everything else."""
    generator = torch.Generator().manual_seed(seed)
    first, other = dtypes

    def leaf(*shape: int, dtype: torch.dtype = other) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    if name.startswith(SHARED):
        plain = name.removeprefix(SHARED)
        drawn = operation(plain, num_sources, tokens, size, dtypes, seed)
        return shared_depth_softmax(*drawn) if plain == "depth_softmax" else shared_operation(*drawn, num_sources)
    if name == "depth_softmax":
        q, kv = leaf(2, 4, tokens, size), [leaf(2, 2, tokens, size) for _ in range(2 * num_sources)]
        return lambda q, *kv: ops.depth_softmax(q, kv[:num_sources], kv[num_sources:]), [q, *kv]
    if name in STREAMS:
        return streams_operation(name, num_sources, tokens, size, leaf)
    if name in JOINT:
        return joint_operation(name, num_sources, tokens, size, leaf)
    sources = [leaf(2, tokens, size, dtype=first if n == 0 else other) for n in range(num_sources)]
    if name.startswith("source_softmax"):
        return softmax_operation(name, sources, leaf)
    return sums_operation(name, sources, leaf)


def shared_operation(function: Callable[..., Tensor], leaves: list[Tensor], num_sources: int) -> Drawn:
    """An operation of shared sources, two reads of which and one without an operation differ in their gradients."""

    def read(*leaves: Tensor) -> Tensor:
        sources, others = [ops.shared(x) for x in leaves[:num_sources]], leaves[num_sources:]
        out = torch.cat([function(*sources, *others), function(*reversed(sources), *others)], dim=-1)
        return torch.cat([out, sources[-1].to(out.dtype)], dim=-1)

    return read, leaves


def shared_depth_softmax(function: Callable[..., Tensor], leaves: list[Tensor]) -> Drawn:
    """Two reads of shared keys and values, which lie in memory as projections give them, and one of the last value."""

    def read(q: Tensor, *kv: Tensor) -> Tensor:
        kv = tuple(ops.shared(x.transpose(1, 2).contiguous().transpose(1, 2)) for x in kv)
        return torch.cat([function(q, *kv), function(2 * q, *kv), kv[-1].exp()], dim=-1)

    return read, leaves


def attended(sources: Sequence[Tensor], query: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a query [D] attends to, behind a norm with a gain [D]; the last source's score has a bias [1]."""
    scores = [ops.source_scores(x, [query], [gain], EPS)[0] for x in sources]
    if bias is not None:
        scores[-1] = scores[-1] + bias
    return ops.source_softmax(sources, scores)


def softmax_operation(name: str, sources: list[Tensor], leaf: Callable[..., Tensor]) -> Drawn:
    """A softmax over sources [2, tokens, size], of scores or of a query."""
    if name == "source_softmax":
        scores = [leaf(*sources[0].shape[:-1], dtype=forms.exact_dtype(sources[0])) for _ in range(len(sources))]
        return lambda *leaves: ops.source_softmax(leaves[: len(sources)], leaves[len(sources) :]), [*sources, *scores]
    size = sources[0].size(-1)

    def attend(*leaves: Tensor) -> Tensor:
        return attended(leaves[: len(sources)], *leaves[len(sources) :])

    return attend, [*sources, leaf(size), leaf(size), leaf(1)]


def sums_operation(name: str, sources: list[Tensor], leaf: Callable[..., Tensor]) -> Drawn:
    """A weighted sum of sources [2, tokens, size], or several."""
    num_sources, (_, tokens, size) = len(sources), sources[0].shape
    shape = {"per site": (num_sources,), "per channel": (num_sources, size), "per token": (2, tokens, num_sources)}
    if name.startswith("several"):
        kind = name.removeprefix("several ")
        weights = [leaf(*shape[kind.removesuffix(" and channel")]) for _ in range(3)]
        channels = [leaf(*shape["per channel"]) for _ in range(3 if kind.endswith("and channel") else 0)]

        def sums(*leaves: Tensor) -> Tensor:
            xs, given = leaves[:num_sources], leaves[num_sources:]
            return torch.cat(ops.weighted_sums(xs, given[:3], given[3:] or None), dim=-1)

        return sums, [*sources, *weights, *channels]
    if name == "per token and channel":
        return lambda *leaves: ops.weighted_sum(leaves[:-2], leaves[-2], leaves[-1]), [
            *sources, leaf(*shape["per token"]), leaf(*shape["per channel"])
        ]  # fmt: skip
    return lambda *leaves: ops.weighted_sum(leaves[:-1], leaves[-1]), [*sources, leaf(*shape[name])]


def streams_operation(name: str, num_streams: int, tokens: int, size: int, leaf: Callable[..., Tensor]) -> Drawn:
    """An operation of hyper-connections on leaves that ``leaf`` makes."""
    num_streams = min(num_streams, 5)
    shape = (2, tokens, num_streams)
    if name in NORMED:
        return normed_operation(name, shape, size, leaf)
    if name == "sinkhorn":
        return lambda x: ops.sinkhorn(x, 7), [leaf(*shape, num_streams)]
    streams, y = leaf(*shape, size), leaf(2, tokens, size)
    weights = leaf(num_streams) if name.endswith("static") else leaf(*shape)
    if name.startswith("stream_read"):
        return ops.stream_read, [streams, weights]
    if name == "stream_write, no matrix":
        return lambda streams, post, y: ops.stream_write(streams, None, post, y), [streams, weights, y]
    matrix = leaf(num_streams, num_streams) if name.endswith("static") else leaf(*shape, num_streams)
    return ops.stream_write, [streams, matrix, weights, y]


def normed_operation(name: str, shape: tuple[int, ...], size: int, leaf: Callable[..., Tensor]) -> Drawn:
    """Products of one normed input; what each of two linear layers gives is weighed apart."""
    if name == "inverse_rms":
        return lambda x: ops.inverse_rms(x, EPS), [leaf(*shape, size)]
    if name == "source_scores":
        return lambda x, *each: torch.stack(ops.source_scores(x, each[:3], each[3:], EPS), dim=-1), [
            leaf(*shape, size), *(leaf(size) for _ in range(6))
        ]  # fmt: skip
    if name.startswith("normed_product"):
        gain = [leaf(size)] if name.endswith("gain") else []
        return lambda x, weight, *gain: ops.normed_product(x, weight, EPS, *gain), [
            leaf(*shape, size), leaf(1 if "one row" in name else 3, size), *gain
        ]  # fmt: skip
    if name.endswith("gain"):
        return lambda x, gain, w, v, b, c: torch.cat(ops.normed_linear(x, [w, v], EPS, gain, [b, c]), dim=-1), [
            leaf(*shape, size), leaf(size), leaf(3, size), leaf(2, size), leaf(3), leaf(2)
        ]  # fmt: skip
    return lambda x, *weights: torch.cat(ops.normed_linear(x, weights, EPS), dim=-1), [
        leaf(*shape, size), leaf(3, size), leaf(2, size)
    ]  # fmt: skip


def joint_operation(name: str, num_entries: int, tokens: int, size: int, leaf: Callable[..., Tensor]) -> Drawn:
    """One softmax over a sequence and entries along depth."""
    past = 3 if name.endswith("masked") else 0
    q = leaf(2, 4, tokens, size)
    kv = [leaf(2, 2, tokens + past, size) for _ in range(2)] + [
        leaf(2, 2, tokens, size) for _ in range(2 * num_entries)
    ]
    visible = None
    if past:
        # Of two rows; the second query of the first row sees nothing of the sequence.
        visible = torch.ones(2, 1, tokens, tokens + past, dtype=torch.bool).tril(past)
        visible[0, :, 1:2] = False

    def attend(q: Tensor, *kv: Tensor) -> Tensor:
        k, v, *entries = kv
        depth_k, depth_v = entries[:num_entries], entries[num_entries:]
        return ops.attention_with_depth(q, k, v, visible, 0.3, depth_k, depth_v, causal=name.endswith("causal"))

    return attend, [q, *kv]


SHARED = "shared, "
JOINT = ("joint", "joint, causal", "joint, masked")
NORMED = (
    "inverse_rms",
    "normed_linear",
    "normed_linear, gain",
    "normed_product",
    "normed_product, gain",
    "normed_product, one row",
    "normed_product, one row and gain",
    "source_scores",
)
STREAMS = (
    *NORMED,
    "sinkhorn",
    "stream_read",
    "stream_read, static",
    "stream_write",
    "stream_write, static",
    "stream_write, no matrix",
)
SUMS = (
    "per site",
    "per channel",
    "per token",
    "per token and channel",
    "several per site",
    "several per channel",
    "several per token",
    "several per token and channel",
    "source_softmax",
    "source_softmax, queries",
)
NAMES = (
    *SUMS,
    *(f"{SHARED}{name}" for name in SUMS),
    "depth_softmax",
    f"{SHARED}depth_softmax",
    *STREAMS,
    *JOINT,
)
DRAWN = {
    "num_sources": st.sampled_from([1, 2, 5, 97]),
    "tokens": st.integers(1, 7),
    "size": st.integers(1, 40),
    "dtypes": st.sampled_from(
        [[torch.float64] * 2, [torch.float32] * 2, [torch.bfloat16] * 2, [torch.float32, torch.bfloat16]]
    ),
    "seed": st.integers(0, 99),
}


def gradients(drawn: Drawn, form: forms.Form | None) -> list[Tensor]:
    """What comes out, and the gradients of the leaves; None: in the form that the operation takes."""
    function, leaves = drawn
    with forms.forced(form):
        out = function(*leaves)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
        return [out, *torch.autograd.grad(out, leaves, grad)]
