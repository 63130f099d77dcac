"""What Triton compiles for hyper-connections: programs over several streams at once. `stream_kernels` launches them.

A program takes one row (token) of all n streams, of which it holds a part of the width D at a time, or several rows of
small matrices. n is padded to a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _streams(row, num_streams, size, column, STREAMS: tl.constexpr):
    """Where streams [n, part] of a row lie, and which are there."""
    n = tl.arange(0, STREAMS)
    at = row * num_streams * size + n[:, None] * size + column[None, :]
    return at, (n < num_streams)[:, None] & (column < size)[None, :]


@triton.jit
def _matrix(row, num_streams, STREAMS: tl.constexpr):
    """Where the matrix [n, n] of a row lies, and which elements are there."""
    i, j = tl.arange(0, STREAMS)[:, None], tl.arange(0, STREAMS)[None, :]
    return (row * num_streams + i) * num_streams + j, (i < num_streams) & (j < num_streams)


@triton.jit
def read_kernel(
    streams, weights, out, num_streams, size, STREAMS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STREAMS)
    weight = tl.load(weights + row * num_streams + n, mask=n < num_streams, other=0.0).to(EXACT)
    for start in range(0, size, SIZE):
        column = start + tl.arange(0, SIZE)
        at, mask = _streams(row, num_streams, size, column, STREAMS)
        x = tl.load(streams + at, mask=mask, other=0.0).to(EXACT)
        total = tl.sum(weight[:, None] * x, axis=0)
        tl.store(out + row * size + column, total.to(out.dtype.element_ty), mask=column < size)


@triton.jit
def read_backward_kernel(
    grad, streams, weights, of_streams, of_weights, num_streams, size,
    STREAMS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STREAMS)
    weight = tl.load(weights + row * num_streams + n, mask=n < num_streams, other=0.0).to(EXACT)
    dots = tl.zeros([STREAMS], dtype=EXACT)
    for start in range(0, size, SIZE):
        column = start + tl.arange(0, SIZE)
        at, mask = _streams(row, num_streams, size, column, STREAMS)
        x = tl.load(streams + at, mask=mask, other=0.0).to(EXACT)
        g = tl.load(grad + row * size + column, mask=column < size, other=0.0).to(EXACT)[None, :]
        dots += tl.sum(g * x, axis=1)
        tl.store(of_streams + at, (weight[:, None] * g).to(of_streams.dtype.element_ty), mask=mask)
    tl.store(of_weights + row * num_streams + n, dots.to(of_weights.dtype.element_ty), mask=n < num_streams)


@triton.jit
def write_kernel(
    streams, mix, post, y, out, num_streams, size,
    MIX: tl.constexpr, STREAMS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STREAMS)
    added = tl.load(post + row * num_streams + n, mask=n < num_streams, other=0.0).to(EXACT)
    cell, inside = _matrix(row, num_streams, STREAMS)
    if MIX:
        matrix = tl.load(mix + cell, mask=inside, other=0.0).to(EXACT)
    for start in range(0, size, SIZE):
        column = start + tl.arange(0, SIZE)
        at, mask = _streams(row, num_streams, size, column, STREAMS)
        x = tl.load(streams + at, mask=mask, other=0.0).to(EXACT)
        if MIX:
            x = tl.sum(matrix[:, :, None] * x[None, :, :], axis=1)
        x += added[:, None] * tl.load(y + row * size + column, mask=column < size, other=0.0).to(EXACT)[None, :]
        tl.store(out + at, x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def write_backward_kernel(
    grad, streams, mix, post, y, of_streams, of_mix, of_post, of_y, num_streams, size,
    MIX: tl.constexpr, STREAMS: tl.constexpr, SIZE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STREAMS)
    added = tl.load(post + row * num_streams + n, mask=n < num_streams, other=0.0).to(EXACT)
    cell, inside = _matrix(row, num_streams, STREAMS)
    if MIX:
        matrix = tl.load(mix + cell, mask=inside, other=0.0).to(EXACT)
    products = tl.zeros([STREAMS, STREAMS], dtype=EXACT)
    dots = tl.zeros([STREAMS], dtype=EXACT)
    for start in range(0, size, SIZE):
        column = start + tl.arange(0, SIZE)
        there = column < size
        at, mask = _streams(row, num_streams, size, column, STREAMS)
        g = tl.load(grad + at, mask=mask, other=0.0).to(EXACT)
        dots += tl.sum(g * tl.load(y + row * size + column, mask=there, other=0.0).to(EXACT)[None, :], axis=1)
        total = tl.sum(added[:, None] * g, axis=0)
        tl.store(of_y + row * size + column, total.to(of_y.dtype.element_ty), mask=there)
        if MIX:
            x = tl.load(streams + at, mask=mask, other=0.0).to(EXACT)
            products += tl.sum(g[:, None, :] * x[None, :, :], axis=2)
            g = tl.sum(matrix[:, :, None] * g[:, None, :], axis=0)
        tl.store(of_streams + at, g.to(of_streams.dtype.element_ty), mask=mask)
    tl.store(of_post + row * num_streams + n, dots.to(of_post.dtype.element_ty), mask=n < num_streams)
    if MIX:
        tl.store(of_mix + cell, products.to(of_mix.dtype.element_ty), mask=inside)


@triton.jit
def _cells(rows, num_streams, ROWS: tl.constexpr, STREAMS: tl.constexpr):
    """Where matrices [ROWS, n, n] lie, and which elements are there."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    i, j = tl.arange(0, STREAMS)[None, :, None], tl.arange(0, STREAMS)[None, None, :]
    return (row * num_streams + i) * num_streams + j, (row < rows) & (i < num_streams) & (j < num_streams)


@triton.jit
def _largest(x):
    """Of each matrix, [ROWS, 1, 1]."""
    return tl.max(tl.max(x, axis=2), axis=1)[:, None, None]


@triton.jit
def _total(x):
    return tl.sum(tl.sum(x, axis=2), axis=1)[:, None, None]


@triton.jit
def _divided(matrix, inside, AXIS: tl.constexpr):
    """Rows (1) or columns (0) divided by their sums, and the sums; those of padding are 1."""
    sums = tl.sum(tl.where(inside, matrix, 0.0), axis=AXIS + 1)
    sums = tl.expand_dims(tl.where(sums == 0.0, 1.0, sums), AXIS + 1)
    return tl.where(inside, matrix / sums, 0.0), sums


@triton.jit
def _started(x, inside, FLOOR: tl.constexpr):
    """exp of logits less the largest, none below the floor; what is no number stays none."""
    largest = _largest(x)
    start = tl.exp(tl.where(inside, x, 0.0) - tl.where(inside, largest, 0.0))
    return tl.where(inside, tl.maximum(start, FLOOR, propagate_nan=tl.PropagateNan.ALL), 0.0)


@triton.jit(do_not_specialize=["rows"])
def sinkhorn_kernel(
    logits, out, rows, num_streams, iterations,
    FLOOR: tl.constexpr, ROWS: tl.constexpr, STREAMS: tl.constexpr,
):  # fmt: skip
    at, inside = _cells(rows, num_streams, ROWS, STREAMS)
    x = tl.load(logits + at, mask=inside, other=float("-inf"))
    matrix = _started(x, inside, FLOOR)
    for _ in range(iterations):
        matrix, _sums = _divided(matrix, inside, 1)
        matrix, _sums = _divided(matrix, inside, 0)
    tl.store(out + at, matrix, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def sinkhorn_backward_kernel(
    grad, logits, of_logits, rows, num_streams, iterations,
    FLOOR: tl.constexpr, ROWS: tl.constexpr, STREAMS: tl.constexpr,
):  # fmt: skip
    at, inside = _cells(rows, num_streams, ROWS, STREAMS)
    x = tl.load(logits + at, mask=inside, other=float("-inf"))
    start = _started(x, inside, FLOOR)
    g = tl.load(grad + at, mask=inside, other=0.0)
    # Nothing is kept of the way there: each step back runs it again up to where it began. That is nothing beside
    # reading the streams.
    for done in range(iterations):
        matrix = start
        for _ in range(iterations - 1 - done):
            matrix, _sums = _divided(matrix, inside, 1)
            matrix, _sums = _divided(matrix, inside, 0)
        by_row, row_sums = _divided(matrix, inside, 1)
        by_column, column_sums = _divided(by_row, inside, 0)
        g = (g - tl.expand_dims(tl.sum(g * by_column, axis=1), 1)) / column_sums
        g = (g - tl.expand_dims(tl.sum(g * by_row, axis=2), 2)) / row_sums
        g = tl.where(inside, g, 0.0)
    g = tl.where(start <= FLOOR, 0.0, g * start)
    largest = tl.where(inside & (start == 1.0), 1.0, 0.0)
    g -= tl.where(inside & (start == 1.0), _total(g) / tl.maximum(_total(largest), 1.0), 0.0)
    tl.store(of_logits + at, g, mask=inside)
