"""Triton kernels of the operations, and what launches them.

Sources are N tensors of any number, so a kernel is given a table of their addresses and serves every N with one
compilation. A program takes some rows (tokens) of full width D and walks over the sources: each is read once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.ops import forms

#: Elements of a tile.
TILE = 2048
#: Programs at most where a program walks over several tiles, to sum the gradient of a query that all rows share.
PROGRAMS = 1056

#: Arguments for whose values no kernel is compiled anew (a kernel may lack some).
FREE = ["num_sources", "rows", "per_row"]

_TRITON = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _read(table, n, num_sources, at, mask, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr):
    """Tile of source ``n``; the table has addresses, then 1 for sources of the wide dtype."""
    address = tl.load(table + n)
    if WIDE == NARROW or tl.load(table + num_sources + n) != 0:
        x = tl.load(tl.multiple_of(address.to(tl.pointer_type(WIDE)), 16) + at, mask=mask, other=0.0).to(EXACT)
    else:
        x = tl.load(tl.multiple_of(address.to(tl.pointer_type(NARROW)), 16) + at, mask=mask, other=0.0).to(EXACT)
    return x


@triton.jit
def _write(table, n, num_sources, at, mask, x, WIDE: tl.constexpr, NARROW: tl.constexpr):
    """Store a tile where the table says, in the dtype that it says."""
    address = tl.load(table + n)
    if WIDE == NARROW or tl.load(table + num_sources + n) != 0:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(WIDE)), 16) + at, x.to(WIDE), mask=mask)
    else:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(NARROW)), 16) + at, x.to(NARROW), mask=mask)


@triton.jit(do_not_specialize=FREE)
def _sum_kernel(
    sources, weights, out, num_sources, rows, size, per_row,
    ROWS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    inside = row < rows
    mask = inside[:, None] & (column < size)[None, :]
    at = row[:, None] * size + column[None, :]
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for n in range(num_sources):
        weight = tl.load(weights + row * per_row + n, mask=inside, other=0.0).to(EXACT)
        total += weight[:, None] * _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=FREE)
def _sum_backward_kernel(
    sources, grads, weights, grad, dots, num_sources, rows, size, per_row,
    ROWS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    inside = row < rows
    mask = inside[:, None] & (column < size)[None, :]
    at = row[:, None] * size + column[None, :]
    g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)
    for n in range(num_sources):
        weight = tl.load(weights + row * per_row + n, mask=inside, other=0.0).to(EXACT)
        x = _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        tl.store(dots + row * num_sources + n, tl.sum(g * x, axis=1), mask=inside)
        _write(grads, n, num_sources, at, mask, weight[:, None] * g, WIDE, NARROW)


@triton.jit(do_not_specialize=FREE)
def _attend_kernel(
    keys, values, factors, query, bias, out, scores, num_sources, rows, size, query_row,
    SCALE: tl.constexpr, SHARED: tl.constexpr, FACTORS: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    inside = row < rows
    mask = inside[:, None] & (column < size)[None, :]
    at = row[:, None] * size + column[None, :]
    q = tl.load(query + row[:, None] * query_row + column[None, :], mask=mask, other=0.0).to(EXACT)
    largest = tl.full([ROWS], float("-inf"), dtype=EXACT)
    norm = tl.zeros([ROWS], dtype=EXACT)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for n in range(num_sources):
        k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        score = tl.sum(q * k, axis=1) * SCALE
        if FACTORS:
            factor = tl.load(factors + n).to(tl.pointer_type(EXACT))
            score *= tl.load(factor + row, mask=inside, other=0.0)
        if BIAS:
            score += tl.where(n == num_sources - 1, tl.load(bias).to(EXACT), 0.0)
        tl.store(scores + row * num_sources + n, score, mask=inside)
        if SHARED:  # noqa: SIM108
            v = k
        else:
            v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        # One pass: what was summed so far is scaled down when a larger score comes.
        larger = tl.maximum(largest, score)
        shrink = tl.exp(largest - larger)
        weight = tl.exp(score - larger)
        norm = norm * shrink + weight
        total = total * shrink[:, None] + weight[:, None] * v
        largest = larger
    tl.store(out + at, (total / norm[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=FREE)
def _attend_backward_kernel(
    keys, values, factors, key_grads, value_grads, factor_grads, query, grad, weights, of_query, of_last,
    num_sources, rows, size, query_row,
    SCALE: tl.constexpr, SHARED: tl.constexpr, FACTORS: tl.constexpr, COMMON: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE)
    shared_sum = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = row < rows
        mask = inside[:, None] & (column < size)[None, :]
        at = row[:, None] * size + column[None, :]
        q = tl.load(query + row[:, None] * query_row + column[None, :], mask=mask, other=0.0).to(EXACT)
        g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)
        mean = tl.zeros([ROWS], dtype=EXACT)
        for n in range(num_sources):
            v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            mean += tl.load(weights + row * num_sources + n, mask=inside, other=0.0) * tl.sum(g * v, axis=1)
        row_sum = tl.zeros([ROWS, SIZE], dtype=EXACT)
        for n in range(num_sources):
            v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            weight = tl.load(weights + row * num_sources + n, mask=inside, other=0.0)
            of_score = weight * (tl.sum(g * v, axis=1) - mean)
            tl.store(of_last + row, of_score, mask=inside & (n == num_sources - 1))
            if SHARED:  # noqa: SIM108
                k = v
            else:
                k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            of_dot = of_score * SCALE
            if FACTORS:
                factor_at = tl.load(factors + n).to(tl.pointer_type(EXACT)) + row
                of_factor_at = tl.load(factor_grads + n).to(tl.pointer_type(EXACT)) + row
                tl.store(of_factor_at, of_dot * tl.sum(q * k, axis=1), mask=inside)
                of_dot *= tl.load(factor_at, mask=inside, other=0.0)
            row_sum += of_dot[:, None] * k
            of_k = of_dot[:, None] * q
            of_v = weight[:, None] * g
            if SHARED:
                _write(value_grads, n, num_sources, at, mask, of_k + of_v, WIDE, NARROW)
            else:
                _write(key_grads, n, num_sources, at, mask, of_k, WIDE, NARROW)
                _write(value_grads, n, num_sources, at, mask, of_v, WIDE, NARROW)
        if COMMON:
            shared_sum += row_sum
        else:
            tl.store(of_query + at, row_sum, mask=mask)
    if COMMON:
        tl.store(of_query + tl.program_id(0) * size + column, tl.sum(shared_sum, axis=0), mask=column < size)


def weighted_sum(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """As `mixerzoo.ops.weighted_sum`, with weights [N] or [..., N]."""
    sources, launch = _prepare(sources)
    weights = weights.contiguous()
    out = torch.empty(sources[0].shape, dtype=forms.common_dtype(sources), device=sources[0].device)
    launch.run(
        _sum_kernel,
        launch.table(sources), weights, out, len(sources), launch.rows, launch.size, _per_row(weights),
    )  # fmt: skip
    return out


def weighted_sum_backward(grad: Tensor, sources: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Gradients of the sources, then that of the weights."""
    sources, launch = _prepare(sources)
    weights = weights.contiguous()
    grads = [torch.empty_like(x) for x in sources]
    dots = grad.new_empty((*grad.shape[:-1], len(sources)), dtype=launch.exact)
    launch.run(
        _sum_backward_kernel,
        launch.table(sources), launch.table(grads), weights, grad.contiguous(), dots,
        len(sources), launch.rows, launch.size, _per_row(weights),
    )  # fmt: skip
    of_weights = dots.flatten(0, -2).sum(0) if weights.ndim == 1 else dots
    return [*grads, of_weights.to(weights.dtype)]


def source_softmax(
    sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `mixerzoo.ops.source_softmax`, with its weights [..., N]."""
    sources, launch = _prepare(sources)
    factors = [r.contiguous() for r in inverse_rms]
    return _attend(launch, sources, sources, factors, query.contiguous(), bias, 1.0)


def source_softmax_backward(
    grad: Tensor, sources: Sequence[Tensor], inverse_rms: Sequence[Tensor], query: Tensor, weights: Tensor
) -> list[Tensor]:
    """Gradients of the sources, of their inverse rms, of the query and of the last score [1]."""
    sources, launch = _prepare(sources)
    factors = [r.contiguous() for r in inverse_rms]
    of_sources, of_factors, of_query, of_last = _attend_backward(
        launch, grad, sources, sources, factors, query.contiguous(), weights, 1.0
    )
    return [*of_sources, *of_factors, of_query.sum(0).to(query.dtype), of_last.sum().view(1).to(query.dtype)]


def depth_softmax(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mix [..., d] and its weights [..., N] of a query [..., d] for each row."""
    both, launch = _prepare([*keys, *values])
    keys, values = both[: len(keys)], both[len(keys) :]
    return _attend(launch, keys, values, None, q.contiguous(), None, 1 / math.sqrt(q.size(-1)))


def depth_softmax_backward(
    grad: Tensor, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], weights: Tensor
) -> list[Tensor]:
    """Gradients of the keys, of the values and of the query."""
    both, launch = _prepare([*keys, *values])
    keys, values = both[: len(keys)], both[len(keys) :]
    found, _, of_query, _ = _attend_backward(
        launch, grad, keys, values, None, q.contiguous(), weights, 1 / math.sqrt(q.size(-1))
    )
    return [*found, of_query]


def _attend(
    launch: _Launch,
    keys: list[Tensor],
    values: list[Tensor],
    factors: list[Tensor] | None,
    query: Tensor,
    bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    first = values[0]
    out = torch.empty(first.shape, dtype=forms.common_dtype(values), device=first.device)
    scores = torch.empty((*first.shape[:-1], len(keys)), dtype=launch.exact, device=first.device)
    table = launch.table(keys)
    shared = keys is values
    launch.run(
        _attend_kernel,
        table, table if shared else launch.table(values), table if factors is None else launch.table(factors),
        query, query if bias is None else bias, out, scores,
        len(keys), launch.rows, launch.size, 0 if query.ndim == 1 else launch.size,
        SCALE=scale, SHARED=shared, FACTORS=factors is not None, BIAS=bias is not None,
    )  # fmt: skip
    return out, scores.softmax(-1)


def _attend_backward(
    launch: _Launch,
    grad: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    factors: list[Tensor] | None,
    query: Tensor,
    weights: Tensor,
    scale: float,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Gradients: of keys and values (of one where they are the same), factors, query (a part of the sum from each
    program where all rows share it), and of the last score of each row."""
    shared, common = keys is values, query.ndim == 1
    of_values = [torch.empty_like(x) for x in values]
    of_keys = [] if shared else [torch.empty_like(x) for x in keys]
    of_factors = [torch.empty_like(x) for x in factors or ()]
    programs = min(PROGRAMS, launch.blocks) if common else launch.blocks
    size = (programs, launch.size) if common else query.shape
    of_query = torch.empty(size, dtype=launch.exact, device=query.device)
    of_last = torch.empty(launch.rows, dtype=launch.exact, device=query.device)
    table, table_grads = launch.table(values), launch.table(of_values)
    launch.run(
        _attend_backward_kernel,
        table if shared else launch.table(keys), table, launch.table(factors) if factors else table,
        table_grads if shared else launch.table(of_keys), table_grads,
        launch.table(of_factors) if factors else table,
        query, grad.contiguous(), weights.contiguous(), of_query, of_last,
        len(keys), launch.rows, launch.size, 0 if common else launch.size,
        programs=programs, SCALE=scale, SHARED=shared, FACTORS=factors is not None, COMMON=common,
    )  # fmt: skip
    return [*of_keys, *of_values], of_factors, of_query, of_last


class _Launch:
    """Sizes and dtypes that every kernel over some sources shares.

    Args:
        sources: contiguous, of one shape, of at most two dtypes.
    """

    def __init__(self, sources: Sequence[Tensor]) -> None:
        first = sources[0]
        self.size = first.size(-1)
        self.rows = first.numel() // self.size
        self.device = first.device
        self.wide = forms.common_dtype(sources)
        narrow = {x.dtype for x in sources} - {self.wide}
        self.narrow = narrow.pop() if narrow else self.wide
        self.exact = torch.promote_types(self.wide, torch.float32)
        self.tile_size = triton.next_power_of_2(self.size)
        self.tile_rows = max(1, min(TILE // self.tile_size, triton.next_power_of_2(self.rows)))
        self.blocks = triton.cdiv(self.rows, self.tile_rows)

    def table(self, tensors: Sequence[Tensor]) -> Tensor:
        """Addresses int64 [N] and whether each is of the wide dtype [N], on the device."""
        numbers = [x.data_ptr() for x in tensors] + [int(x.dtype == self.wide) for x in tensors]
        if self.device.type != "cuda":
            return torch.tensor(numbers)
        # From pinned memory the copy waits for nobody.
        return torch.tensor(numbers, pin_memory=True).to(self.device, non_blocking=True)

    def run(self, kernel: Any, *arguments: Any, programs: int | None = None, **options: Any) -> None:
        """Launch a kernel: on ``programs`` programs, or one for each tile."""
        # Triton launches on the current device.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[(programs or self.blocks,)](
                *arguments,
                **options,
                ROWS=self.tile_rows,
                SIZE=self.tile_size,
                WIDE=_TRITON[self.wide],
                NARROW=_TRITON[self.narrow],
                EXACT=_TRITON[self.exact],
                num_warps=max(4, min(16, self.tile_rows * self.tile_size // 512)),
            )


def _prepare(sources: Sequence[Tensor]) -> tuple[list[Tensor], _Launch]:
    """Sources as kernels read them: contiguous, of at most two dtypes, aligned to 16 bytes."""
    wide = forms.common_dtype(sources)
    several = len({x.dtype for x in sources}) > 2
    ready = [(x.to(wide) if several else x).contiguous() for x in sources]
    ready = [x if x.data_ptr() % 16 == 0 else x.clone() for x in ready]
    return ready, _Launch(ready)


def _per_row(weights: Tensor) -> int:
    return 0 if weights.ndim == 1 else weights.size(-1)
