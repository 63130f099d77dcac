"""Triton kernels of the operations, and what launches them.

Sources are N tensors of any number, so a kernel is given a table of their addresses and serves every N with one
compilation. A program takes some rows (tokens) of full width D and walks over the sources, some at once: each is read
once, forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixerzoo.ops import forms

#: Programs at most where a program walks over several tiles, to sum the gradient of a query that all rows share.
PROGRAMS = 1056


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work.

    Attributes:
        sources: sources that a program loads at once. One after another, each would wait for the memory, and for the
            sum over the width, of the one before.
        elements: of a source in a program's tile, if the width allows so few: the rows of a program are full.
        warps: of a program.
    """

    sources: int
    elements: int
    warps: int


#: By kernel.
TILINGS = {
    "sum": Tiling(sources=4, elements=2048, warps=4),
    "sum_backward": Tiling(sources=4, elements=2048, warps=4),
    "attend": Tiling(sources=1, elements=2048, warps=4),
    "attend_backward": Tiling(sources=4, elements=2048, warps=4),
}

#: Arguments for whose values no kernel is compiled anew (a kernel may lack some).
FREE = ["num_sources", "rows", "per_row"]

_TRITON = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _tile(rows, size, block, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Rows [ROWS] of a block, which of them there are, where their elements [ROWS, SIZE] lie, and which are there."""
    row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = row < rows
    return row, inside, row[:, None] * size + column[None, :], inside[:, None] & (column < size)[None, :]


@triton.jit
def _addresses(table, n, num_sources, TYPE: tl.constexpr):
    """Pointers [N, 1, 1] to sources ``n`` [N]."""
    address = tl.load(table + n, mask=n < num_sources, other=0)[:, None, None]
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), [16, 16, 16])


@triton.jit
def _read(table, n, num_sources, at, mask, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr):
    """Tiles [N, ROWS, SIZE] of sources ``n``; the table has addresses, then 1 for sources of the wide dtype."""
    there = (n < num_sources)[:, None, None] & mask[None, :, :]
    wide = _addresses(table, n, num_sources, WIDE) + at[None, :, :]
    if WIDE == NARROW:
        x = tl.load(wide, mask=there, other=0.0).to(EXACT)
    else:
        is_wide = (tl.load(table + num_sources + n, mask=n < num_sources, other=0) != 0)[:, None, None]
        narrow = _addresses(table, n, num_sources, NARROW) + at[None, :, :]
        x = tl.load(wide, mask=there & is_wide, other=0.0).to(EXACT)
        x += tl.load(narrow, mask=there & (is_wide == 0), other=0.0).to(EXACT)
    return x


@triton.jit
def _write(table, n, num_sources, at, mask, x, WIDE: tl.constexpr, NARROW: tl.constexpr):
    """Store tiles [N, ROWS, SIZE] where the table says, in the dtypes that it says."""
    there = (n < num_sources)[:, None, None] & mask[None, :, :]
    wide = _addresses(table, n, num_sources, WIDE) + at[None, :, :]
    if WIDE == NARROW:
        tl.store(wide, x.to(WIDE), mask=there)
    else:
        is_wide = (tl.load(table + num_sources + n, mask=n < num_sources, other=0) != 0)[:, None, None]
        narrow = _addresses(table, n, num_sources, NARROW) + at[None, :, :]
        tl.store(wide, x.to(WIDE), mask=there & is_wide)
        tl.store(narrow, x.to(NARROW), mask=there & (is_wide == 0))


@triton.jit(do_not_specialize=FREE)
def _sum_kernel(
    sources, weights, out, num_sources, rows, size, per_row,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        weight = tl.load(weights + row[None, :] * per_row + n[:, None], mask=there, other=0.0).to(EXACT)
        x = _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        total += tl.sum(weight[:, :, None] * x, axis=0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=FREE)
def _sum_backward_kernel(
    sources, grads, weights, grad, dots, num_sources, rows, size, per_row,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        weight = tl.load(weights + row[None, :] * per_row + n[:, None], mask=there, other=0.0).to(EXACT)
        x = _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        tl.store(dots + row[None, :] * num_sources + n[:, None], tl.sum(g * x, axis=2), mask=there)
        _write(grads, n, num_sources, at, mask, weight[:, :, None] * g, WIDE, NARROW)


@triton.jit
def _factors(factors, n, row, num_sources, there, EXACT: tl.constexpr):
    """Factors [N, ROWS] of the scores of sources ``n``."""
    address = tl.load(factors + n, mask=n < num_sources, other=0)[:, None]
    return tl.load(address.to(tl.pointer_type(EXACT)) + row[None, :], mask=there, other=0.0)


@triton.jit(do_not_specialize=FREE)
def _attend_kernel(
    keys, values, factors, query, bias, out, scores, num_sources, rows, size, query_row,
    SCALE: tl.constexpr, SHARED: tl.constexpr, FACTORS: tl.constexpr, BIAS: tl.constexpr,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    column = tl.arange(0, SIZE)
    q = tl.load(query + row[:, None] * query_row + column[None, :], mask=mask, other=0.0).to(EXACT)[None, :, :]
    largest = tl.full([ROWS], float("-inf"), dtype=EXACT)
    norm = tl.zeros([ROWS], dtype=EXACT)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        if SHARED:  # noqa: SIM108
            v = k
        else:
            v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        score = tl.sum(q * k, axis=2) * SCALE
        if FACTORS:
            score *= _factors(factors, n, row, num_sources, there, EXACT)
        if BIAS:
            score += tl.where(n == num_sources - 1, tl.load(bias).to(EXACT), 0.0)[:, None]
        tl.store(scores + row[None, :] * num_sources + n[:, None], score, mask=there)
        # One pass: what was summed so far is scaled down when a larger score comes.
        score = tl.where((n < num_sources)[:, None], score, float("-inf"))
        larger = tl.maximum(largest, tl.max(score, axis=0))
        shrink = tl.exp(largest - larger)
        weight = tl.exp(score - larger[None, :])
        norm = norm * shrink + tl.sum(weight, axis=0)
        total = total * shrink[:, None] + tl.sum(weight[:, :, None] * v, axis=0)
        largest = larger
    tl.store(out + at, (total / norm[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=FREE)
def _attend_backward_kernel(
    keys, values, factors, key_grads, value_grads, factor_grads, query, grad, out, weights, of_query, of_last,
    num_sources, rows, size, query_row,
    SCALE: tl.constexpr, SHARED: tl.constexpr, FACTORS: tl.constexpr, COMMON: tl.constexpr,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE)
    shared_sum = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row, inside, at, mask = _tile(rows, size, block, ROWS, SIZE)
        q = tl.load(query + row[:, None] * query_row + column[None, :], mask=mask, other=0.0).to(EXACT)[None, :, :]
        g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)
        # The mean over sources of the gradients of the weights: no pass over the sources is needed for it.
        mean = tl.sum(g * tl.load(out + at, mask=mask, other=0.0).to(EXACT), axis=1)[None, :]
        row_sum = tl.zeros([ROWS, SIZE], dtype=EXACT)
        for start in range(0, num_sources, SOURCES):
            n = start + tl.arange(0, SOURCES)
            there = (n < num_sources)[:, None] & inside[None, :]
            k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            if SHARED:  # noqa: SIM108
                v = k
            else:
                v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            weight = tl.load(weights + row[None, :] * num_sources + n[:, None], mask=there, other=0.0)
            of_score = weight * (tl.sum(g[None, :, :] * v, axis=2) - mean)
            tl.store(of_last + row[None, :] + n[:, None] * 0, of_score, mask=there & (n == num_sources - 1)[:, None])
            of_dot = of_score * SCALE
            if FACTORS:
                address = tl.load(factor_grads + n, mask=n < num_sources, other=0)[:, None]
                of_factor = address.to(tl.pointer_type(EXACT)) + row[None, :]
                tl.store(of_factor, of_dot * tl.sum(q * k, axis=2), mask=there)
                of_dot *= _factors(factors, n, row, num_sources, there, EXACT)
            row_sum += tl.sum(of_dot[:, :, None] * k, axis=0)
            of_k = of_dot[:, :, None] * q
            of_v = weight[:, :, None] * g[None, :, :]
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
        _sum_kernel, TILINGS["sum"],
        *launch.tables(sources), weights, out, len(sources), launch.rows, launch.size, _per_row(weights),
    )  # fmt: skip
    return out


def weighted_sum_backward(grad: Tensor, sources: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """Gradients of the sources, then that of the weights."""
    sources, launch = _prepare(sources)
    weights = weights.contiguous()
    grads = [torch.empty_like(x) for x in sources]
    dots = grad.new_empty((*grad.shape[:-1], len(sources)), dtype=launch.exact)
    launch.run(
        _sum_backward_kernel, TILINGS["sum_backward"],
        *launch.tables(sources, grads), weights, grad.contiguous(), dots,
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
    grad: Tensor,
    sources: Sequence[Tensor],
    inverse_rms: Sequence[Tensor],
    query: Tensor,
    out: Tensor,
    weights: Tensor,
) -> list[Tensor]:
    """Gradients of the sources, of their inverse rms, of the query and of the last score [1]."""
    sources, launch = _prepare(sources)
    factors = [r.contiguous() for r in inverse_rms]
    of_sources, of_factors, of_query, of_last = _attend_backward(
        launch, grad, sources, sources, factors, query.contiguous(), out, weights, 1.0
    )
    return [*of_sources, *of_factors, of_query.sum(0).to(query.dtype), of_last.sum().view(1).to(query.dtype)]


def depth_softmax(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mix [..., d] and its weights [..., N] of a query [..., d] for each row."""
    both, launch = _prepare([*keys, *values])
    keys, values = both[: len(keys)], both[len(keys) :]
    return _attend(launch, keys, values, None, q.contiguous(), None, 1 / math.sqrt(q.size(-1)))


def depth_softmax_backward(
    grad: Tensor, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], out: Tensor, weights: Tensor
) -> list[Tensor]:
    """Gradients of the keys, of the values and of the query."""
    both, launch = _prepare([*keys, *values])
    keys, values = both[: len(keys)], both[len(keys) :]
    found, _, of_query, _ = _attend_backward(
        launch, grad, keys, values, None, q.contiguous(), out, weights, 1 / math.sqrt(q.size(-1))
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
    launch.run(
        _attend_kernel, TILINGS["attend"],
        *launch.tables(keys, values, factors or ()), query, query if bias is None else bias, out, scores,
        len(keys), launch.rows, launch.size, 0 if query.ndim == 1 else launch.size,
        SCALE=scale, SHARED=keys is values, FACTORS=factors is not None, BIAS=bias is not None,
    )  # fmt: skip
    return out, scores.softmax(-1)


def _attend_backward(
    launch: _Launch,
    grad: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    factors: list[Tensor] | None,
    query: Tensor,
    out: Tensor,
    weights: Tensor,
    scale: float,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Gradients: of keys and values (of one where they are the same), factors, query (a part of the sum from each
    program where all rows share it), and of the last score of each row."""
    shared, common = keys is values, query.ndim == 1
    of_values = [torch.empty_like(x) for x in values]
    of_keys = [] if shared else [torch.empty_like(x) for x in keys]
    of_factors = [torch.empty_like(x) for x in factors or ()]
    tiling = TILINGS["attend_backward"]
    programs = launch.blocks(tiling)
    programs = min(PROGRAMS, programs) if common else programs
    size = (programs, launch.size) if common else query.shape
    of_query = torch.empty(size, dtype=launch.exact, device=query.device)
    of_last = torch.empty(launch.rows, dtype=launch.exact, device=query.device)
    tables = launch.tables(keys, values, factors or (), of_values if shared else of_keys, of_values, of_factors)
    launch.run(
        _attend_backward_kernel, tiling,
        *tables, query, grad.contiguous(), out.contiguous(), weights.contiguous(), of_query, of_last,
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
        self.tile_size = int(triton.next_power_of_2(self.size))

    def tile_rows(self, tiling: Tiling) -> int:
        """Rows of a program's tile."""
        return max(1, min(tiling.elements // self.tile_size, int(triton.next_power_of_2(self.rows))))

    def blocks(self, tiling: Tiling) -> int:
        """Tiles that hold all rows."""
        return -(-self.rows // self.tile_rows(tiling))

    def tables(self, *each: Sequence[Tensor]) -> list[Tensor]:
        """For each sequence: addresses int64 [N] and whether each is of the wide dtype [N], on the device."""
        numbers = [[x.data_ptr() for x in xs] + [int(x.dtype == self.wide) for x in xs] for xs in each]
        flat = torch.tensor([number for some in numbers for number in some], pin_memory=self.device.type == "cuda")
        # One copy for all, from pinned memory, so that it waits for nobody.
        return list(torch.split(flat.to(self.device, non_blocking=True), [len(some) for some in numbers]))

    def run(self, kernel: Any, tiling: Tiling, *arguments: Any, programs: int | None = None, **options: Any) -> None:
        """Launch a kernel: on ``programs`` programs, or one for each tile."""
        # The first argument is a table of the sources.
        count = arguments[0].numel() // 2
        # Triton launches on the current device.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            kernel[(programs or self.blocks(tiling),)](
                *arguments,
                **options,
                SOURCES=min(tiling.sources, triton.next_power_of_2(count)),
                ROWS=self.tile_rows(tiling),
                SIZE=self.tile_size,
                WIDE=_TRITON[self.wide],
                NARROW=_TRITON[self.narrow],
                EXACT=_TRITON[self.exact],
                num_warps=tiling.warps,
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
