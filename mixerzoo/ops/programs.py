"""What Triton compiles: programs over a table of the sources' addresses. `kernels` launches them.

A program takes some rows (tokens) of full width D and walks over the sources, some at once: each is read once, forward
and backward. Of two dtypes, the sources of the wide one come first, so that the registers hold one at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Arguments for whose values no kernel is compiled anew (a kernel may lack some).
FREE = ["num_sources", "num_wide", "rows", "per_row"]


@triton.jit
def _tile(rows, size, block, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """Rows [ROWS] of a block, which of them there are, where their elements [ROWS, SIZE] lie, and which are there."""
    row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = row < rows
    return row, inside, row[:, None] * size + column[None, :], inside[:, None] & (column < size)[None, :]


@triton.jit
def _tiles(table, n, end, at, mask, TYPE: tl.constexpr):
    """Pointers [N, ROWS, SIZE] to tiles of sources ``n`` [N], and which are there: those before ``end`` that have an
    address."""
    address = tl.load(table + n, mask=n < end, other=0)[:, None, None]
    there = (address != 0) & mask[None, :, :]
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), [16, 16, 16]) + at[None, :, :], there


@triton.jit
def _read(table, n, end, at, mask, TYPE: tl.constexpr, EXACT: tl.constexpr):
    """Tiles [N, ROWS, SIZE] of sources ``n``."""
    tiles, there = _tiles(table, n, end, at, mask, TYPE)
    return tl.load(tiles, mask=there, other=0.0).to(EXACT)


@triton.jit
def _write(table, n, end, at, mask, x, TYPE: tl.constexpr):
    """Store tiles [N, ROWS, SIZE] where the table says."""
    tiles, there = _tiles(table, n, end, at, mask, TYPE)
    tl.store(tiles, x.to(TYPE), mask=there)


@triton.jit
def _places(table, n, end, num_sources, MIXED: tl.constexpr):
    """Which weights [N] are those of sources ``n``, which are in another order where their dtypes differ."""
    return tl.load(table + num_sources + n, mask=n < end, other=0) if MIXED else n


@triton.jit
def _weights(
    weights, channels, place, exists, row, inside, per_row, size,
    CHANNELS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Weights [N, ROWS, 1] of the sources at ``place``, or [N, ROWS, SIZE] with those of channels, which rows share."""
    there = exists[:, None] & inside[None, :]
    weight = tl.load(weights + row[None, :] * per_row + place[:, None], mask=there, other=0.0).to(EXACT)[:, :, None]
    if CHANNELS:
        column = tl.arange(0, SIZE)
        there = exists[:, None] & (column < size)[None, :]
        added = tl.load(channels + place[:, None] * size + column[None, :], mask=there, other=0.0)
        weight = weight + added.to(EXACT)[:, None, :]
    return weight


@triton.jit
def _sum(
    total, sources, weights, channels, start, end, num_sources, rows, size, per_row,
    CHANNELS: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    TYPE: tl.constexpr, MIXED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A total [ROWS, SIZE] and the weighted sources from ``start`` to ``end``, which have one dtype."""
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    for first in range(start, end, SOURCES):
        n = first + tl.arange(0, SOURCES)
        place = _places(sources, n, end, num_sources, MIXED)
        weight = _weights(weights, channels, place, n < end, row, inside, per_row, size, CHANNELS, SIZE, EXACT)
        total += tl.sum(weight * _read(sources, n, end, at, mask, TYPE, EXACT), axis=0)
    return total


@triton.jit(do_not_specialize=FREE)
def sum_kernel(
    sources, weights, channels, out, num_sources, num_wide, rows, size, per_row,
    CHANNELS: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    _, _, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    mixed: tl.constexpr = WIDE != NARROW
    total = _sum(
        total, sources, weights, channels, 0, num_wide, num_sources, rows, size, per_row,
        CHANNELS, SOURCES, ROWS, SIZE, WIDE, mixed, EXACT,
    )  # fmt: skip
    if mixed:
        total = _sum(
            total, sources, weights, channels, num_wide, num_sources, num_sources, rows, size, per_row,
            CHANNELS, SOURCES, ROWS, SIZE, NARROW, mixed, EXACT,
        )  # fmt: skip
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _sum_backward(
    g, sources, grads, weights, channels, dots, start, end, num_sources, rows, size, per_row,
    CHANNELS: tl.constexpr, DOTS: tl.constexpr, ADDS: tl.constexpr,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    TYPE: tl.constexpr, MIXED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Of the sources from ``start`` to ``end``, which have one dtype."""
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    for first in range(start, end, SOURCES):
        n = first + tl.arange(0, SOURCES)
        place = _places(sources, n, end, num_sources, MIXED)
        if DOTS:
            x = _read(sources, n, end, at, mask, TYPE, EXACT)
            there = (n < end)[:, None] & inside[None, :]
            tl.store(dots + row[None, :] * num_sources + place[:, None], tl.sum(g * x, axis=2), mask=there)
        of_x = g * _weights(weights, channels, place, n < end, row, inside, per_row, size, CHANNELS, SIZE, EXACT)
        if ADDS:
            of_x += _read(grads, n, end, at, mask, TYPE, EXACT)
        _write(grads, n, end, at, mask, of_x, TYPE)


@triton.jit(do_not_specialize=FREE)
def sum_backward_kernel(
    sources, grads, weights, channels, grad, dots, num_sources, num_wide, rows, size, per_row,
    CHANNELS: tl.constexpr, DOTS: tl.constexpr, ADDS: tl.constexpr,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    _, _, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    mixed: tl.constexpr = WIDE != NARROW
    _sum_backward(
        g, sources, grads, weights, channels, dots, 0, num_wide, num_sources, rows, size, per_row,
        CHANNELS, DOTS, ADDS, SOURCES, ROWS, SIZE, WIDE, mixed, EXACT,
    )  # fmt: skip
    if mixed:
        _sum_backward(
            g, sources, grads, weights, channels, dots, num_wide, num_sources, num_sources, rows, size, per_row,
            CHANNELS, DOTS, ADDS, SOURCES, ROWS, SIZE, NARROW, mixed, EXACT,
        )  # fmt: skip


@triton.jit(do_not_specialize=FREE)
def attend_kernel(
    keys, values, query, out, scores, num_sources, rows, size,
    SCALE: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    q = tl.load(query + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    largest = tl.full([ROWS], float("-inf"), dtype=EXACT)
    norm = tl.zeros([ROWS], dtype=EXACT)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        k = _read(keys, n, num_sources, at, mask, WIDE, EXACT)
        v = _read(values, n, num_sources, at, mask, WIDE, EXACT)
        score = tl.sum(q * k, axis=2) * SCALE
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
def attend_backward_kernel(
    keys, values, key_grads, value_grads, query, grad, out, weights, of_query, dots, num_sources, rows, size,
    SCALE: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    q = tl.load(query + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)
    # The mean over sources of the gradients of the weights: no pass over the sources is needed for it.
    mean = tl.sum(g * tl.load(out + at, mask=mask, other=0.0).to(EXACT), axis=1)[None, :]
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        k = _read(keys, n, num_sources, at, mask, WIDE, EXACT)
        v = _read(values, n, num_sources, at, mask, WIDE, EXACT)
        weight = tl.load(weights + row[None, :] * num_sources + n[:, None], mask=there, other=0.0)
        of_dot = weight * (tl.sum(g[None, :, :] * v, axis=2) - mean) * SCALE
        tl.store(dots + row[None, :] * num_sources + n[:, None], of_dot, mask=there)
        total += tl.sum(of_dot[:, :, None] * k, axis=0)
        _write(key_grads, n, num_sources, at, mask, of_dot[:, :, None] * q, WIDE)
        _write(value_grads, n, num_sources, at, mask, weight[:, :, None] * g[None, :, :], WIDE)
    tl.store(of_query + at, total, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def score_kernel(
    x, query, scores, inverse_rms, rows, size,
    EPS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE)
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    value = tl.load(x + at, mask=mask, other=0.0).to(EXACT)
    q = tl.load(query + column, mask=column < size, other=0.0).to(EXACT)[None, :]
    factor = 1 / tl.sqrt(tl.sum(value * value, axis=1) / size + EPS)
    tl.store(inverse_rms + row, factor, mask=inside)
    tl.store(scores + row, tl.sum(value * q, axis=1) * factor, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def score_backward_kernel(
    grad, x, query, scores, inverse_rms, of_x, of_query, rows, size,
    ROWS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE)
    q = tl.load(query + column, mask=column < size, other=0.0).to(EXACT)[None, :]
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row, inside, at, mask = _tile(rows, size, block, ROWS, SIZE)
        value = tl.load(x + at, mask=mask, other=0.0).to(EXACT)
        factor = tl.load(inverse_rms + row, mask=inside, other=0.0)
        of_dot = tl.load(grad + row, mask=inside, other=0.0).to(EXACT) * factor
        shrink = of_dot * tl.load(scores + row, mask=inside, other=0.0) * factor / size
        of_value = of_dot[:, None] * q - shrink[:, None] * value
        tl.store(of_x + at, of_value.to(of_x.dtype.element_ty), mask=mask)
        total += of_dot[:, None] * value
    tl.store(of_query + tl.program_id(0) * size + column, tl.sum(total, axis=0), mask=column < size)
