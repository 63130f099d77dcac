"""What Triton compiles: programs over a table of the sources' addresses. `kernels` launches them.

A program takes some rows (tokens) of full width D and walks over the sources, some at once: each is read once, forward
and backward.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Arguments for whose values no kernel is compiled anew (a kernel may lack some).
FREE = ["num_sources", "rows", "per_row"]


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
def _there(table, n, num_sources):
    """Which sources [N, 1, 1] have an address."""
    return (tl.load(table + n, mask=n < num_sources, other=0) != 0)[:, None, None]


@triton.jit
def _read(table, n, num_sources, at, mask, WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr):
    """Tiles [N, ROWS, SIZE] of sources ``n``; the table has addresses, then 1 for sources of the wide dtype."""
    there = _there(table, n, num_sources) & mask[None, :, :]
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
    there = _there(table, n, num_sources) & mask[None, :, :]
    wide = _addresses(table, n, num_sources, WIDE) + at[None, :, :]
    if WIDE == NARROW:
        tl.store(wide, x.to(WIDE), mask=there)
    else:
        is_wide = (tl.load(table + num_sources + n, mask=n < num_sources, other=0) != 0)[:, None, None]
        narrow = _addresses(table, n, num_sources, NARROW) + at[None, :, :]
        tl.store(wide, x.to(WIDE), mask=there & is_wide)
        tl.store(narrow, x.to(NARROW), mask=there & (is_wide == 0))


@triton.jit
def _channels(channels, n, num_sources, size, SIZE: tl.constexpr, EXACT: tl.constexpr):
    """Weights [N, 1, SIZE] of the channels of sources ``n``, that all rows share."""
    column = tl.arange(0, SIZE)
    there = (n < num_sources)[:, None] & (column < size)[None, :]
    weight = tl.load(channels + n[:, None] * size + column[None, :], mask=there, other=0.0)
    return weight.to(EXACT)[:, None, :]


@triton.jit(do_not_specialize=FREE)
def sum_kernel(
    sources, weights, channels, out, num_sources, rows, size, per_row,
    CHANNELS: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        weight = tl.load(weights + row[None, :] * per_row + n[:, None], mask=there, other=0.0).to(EXACT)
        x = _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        weight = weight[:, :, None]
        if CHANNELS:
            weight = weight + _channels(channels, n, num_sources, size, SIZE, EXACT)
        total += tl.sum(weight * x, axis=0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=FREE)
def sum_backward_kernel(
    sources, grads, weights, channels, grad, dots, num_sources, rows, size, per_row,
    CHANNELS: tl.constexpr, DOTS: tl.constexpr, ADDS: tl.constexpr,
    SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        weight = tl.load(weights + row[None, :] * per_row + n[:, None], mask=there, other=0.0).to(EXACT)
        if DOTS:
            x = _read(sources, n, num_sources, at, mask, WIDE, NARROW, EXACT)
            tl.store(dots + row[None, :] * num_sources + n[:, None], tl.sum(g * x, axis=2), mask=there)
        weight = weight[:, :, None]
        if CHANNELS:
            weight = weight + _channels(channels, n, num_sources, size, SIZE, EXACT)
        of_x = weight * g
        if ADDS:
            of_x += _read(grads, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        _write(grads, n, num_sources, at, mask, of_x, WIDE, NARROW)


@triton.jit(do_not_specialize=FREE)
def attend_kernel(
    keys, values, query, out, scores, num_sources, rows, size,
    SCALE: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row, inside, at, mask = _tile(rows, size, tl.program_id(0), ROWS, SIZE)
    q = tl.load(query + at, mask=mask, other=0.0).to(EXACT)[None, :, :]
    largest = tl.full([ROWS], float("-inf"), dtype=EXACT)
    norm = tl.zeros([ROWS], dtype=EXACT)
    total = tl.zeros([ROWS, SIZE], dtype=EXACT)
    for start in range(0, num_sources, SOURCES):
        n = start + tl.arange(0, SOURCES)
        there = (n < num_sources)[:, None] & inside[None, :]
        k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
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
    keys, values, key_grads, value_grads, query, grad, out, weights, of_query, num_sources, rows, size,
    SCALE: tl.constexpr, SOURCES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, NARROW: tl.constexpr, EXACT: tl.constexpr,
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
        k = _read(keys, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        v = _read(values, n, num_sources, at, mask, WIDE, NARROW, EXACT)
        weight = tl.load(weights + row[None, :] * num_sources + n[:, None], mask=there, other=0.0)
        of_dot = weight * (tl.sum(g[None, :, :] * v, axis=2) - mean) * SCALE
        total += tl.sum(of_dot[:, :, None] * k, axis=0)
        _write(key_grads, n, num_sources, at, mask, of_dot[:, :, None] * q, WIDE, NARROW)
        _write(value_grads, n, num_sources, at, mask, weight[:, :, None] * g[None, :, :], WIDE, NARROW)
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
