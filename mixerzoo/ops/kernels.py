"""Launches the Triton kernels of the operations; what they compute is in `programs`.

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

from mixerzoo.ops import forms, programs

#: Programs at most where a program walks over several tiles, to sum the gradient of a query that all rows share.
PROGRAMS = 1056


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work.

    Attributes:
        sources: sources that a program loads at once. One after another, each would wait for the memory, and for the
            sum over the width, of the one before.
        elements: of a source in a program's tile, if the width allows so few: the rows of a program are full.
        warps: of a program with so many elements; a wider one has as many more, and where that is too many, fewer
            sources, so that no thread holds more than its registers do.
    """

    sources: int
    elements: int
    warps: int


#: Of a program at most: more threads have too few registers each.
MOST_WARPS = 16

#: By kernel.
TILINGS = {
    "sum": Tiling(sources=4, elements=2048, warps=4),
    "sum_backward": Tiling(sources=4, elements=2048, warps=4),
    "attend": Tiling(sources=1, elements=2048, warps=4),
    "attend_backward": Tiling(sources=4, elements=2048, warps=4),
    "score": Tiling(sources=1, elements=2048, warps=4),
}

#: Triton's name of each dtype.
TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def weighted_sum(sources: Sequence[Tensor], weights: Tensor, channels: Tensor | None = None) -> Tensor:
    """As `mixerzoo.ops.weighted_sum`."""
    sources = _prepare(sources)
    launch = _Launch(sources)
    weights, channels = _apart(weights, channels)
    added = weights if channels is None else channels.contiguous()
    weights = _for_rows(weights, sources[0])
    out = torch.empty(sources[0].shape, dtype=launch.wide, device=launch.device)
    launch.run(
        programs.sum_kernel, TILINGS["sum"],
        *launch.tables(sources), weights, added, out, len(sources), launch.num_wide, launch.rows, launch.size,
        _per_row(weights), CHANNELS=channels is not None, NARROW=launch.narrow,
    )  # fmt: skip
    return out


def weighted_sum_backward(
    grads: Sequence[Tensor], sources: Sequence[Tensor], ways: Sequence[tuple[Tensor, ...]], wanted: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the wanted sources of several sums, and those of weights [N] or [..., N]. Those of weights of
    channels, sums over rows, are left."""
    given, sources = sources, _prepare(sources)
    launch = _Launch(sources)
    of_sources = [torch.empty_like(x) if is_wanted else None for x, is_wanted in zip(sources, wanted, strict=True)]
    of_weights = []
    tables = launch.tables(sources, of_sources)
    for number, (grad, way) in enumerate(zip(grads, ways, strict=True)):
        has_dots = way[0].ndim != 2
        weights, channels = _apart(*way)
        added = weights if channels is None else channels.contiguous()
        shape, weights = weights.shape, _for_rows(weights, sources[0])
        dots = grad.new_empty((*grad.shape[:-1], len(sources)) if has_dots else 1, dtype=launch.exact)
        if has_dots or any(wanted):
            launch.run(
                programs.sum_backward_kernel, TILINGS["sum_backward"],
                *tables, weights, added, grad.contiguous(), dots, len(sources), launch.num_wide, launch.rows,
                launch.size, _per_row(weights),
                CHANNELS=channels is not None, DOTS=has_dots, ADDS=number > 0, NARROW=launch.narrow,
            )  # fmt: skip
        if has_dots:
            of_weights.append(dots.sum_to_size(shape).to(weights.dtype))
    found = [of_x.to(x.dtype) for x, of_x in zip(given, of_sources, strict=True) if of_x is not None]
    return found, of_weights


def _apart(weights: Tensor, channels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Weights [N] or [..., N], and those of channels [N, D] if there are any, whose sum weighs."""
    return (weights.new_zeros(len(weights)), weights) if weights.ndim == 2 else (weights, channels)


def depth_softmax(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mix [..., d] and its weights [..., N] of a query [..., d] for each row."""
    out_dtype = forms.common_dtype(values)
    keys, values = _one_dtype(keys, values)
    launch = _Launch(keys)
    shape = values[0].shape
    out = torch.empty(shape, dtype=out_dtype, device=launch.device)
    scores = torch.empty((*shape[:-1], len(keys)), dtype=launch.exact, device=launch.device)
    launch.run(
        programs.attend_kernel, TILINGS["attend"],
        *launch.tables(keys, values), q.contiguous(), out, scores, len(keys), launch.rows, launch.size,
        SCALE=1 / math.sqrt(q.size(-1)),
    )  # fmt: skip
    return out, scores.softmax(-1)


def depth_softmax_backward(
    grad: Tensor,
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    out: Tensor,
    weights: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the keys and the values of which they are wanted, of the query, and of the dots [..., N]."""
    given = [*keys, *values]
    keys, values = _one_dtype(keys, values)
    launch = _Launch(keys)
    found = [torch.empty_like(x) if is_wanted else None for x, is_wanted in zip([*keys, *values], wanted, strict=True)]
    of_query, of_dots = (torch.empty(x.shape, dtype=launch.exact, device=x.device) for x in (q, weights))
    launch.run(
        programs.attend_backward_kernel, TILINGS["attend_backward"],
        *launch.tables(keys, values, found[: len(keys)], found[len(keys) :]), q.contiguous(), grad.contiguous(),
        out.contiguous(), weights.contiguous(), of_query, of_dots, len(keys), launch.rows, launch.size,
        SCALE=1 / math.sqrt(q.size(-1)),
    )  # fmt: skip
    of_sources = [of_x.to(x.dtype) for x, of_x in zip(given, found, strict=True) if of_x is not None]
    return [*of_sources, of_query, of_dots]


def normed_dot(x: Tensor, query: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """⟨query, x⟩ / rms(x) [..., 1] of x [..., D] and one query [D], and 1 / rms(x) [..., 1]."""
    if query.shape != x.shape[-1:]:
        raise ValueError(f"a query {list(query.shape)} cannot score a source {list(x.shape)}")
    x, launch = x.contiguous(), _Launch([x])
    scores, inverse_rms = (torch.empty((*x.shape[:-1], 1), dtype=launch.exact, device=x.device) for _ in range(2))
    given = (x, query.contiguous(), scores, inverse_rms)
    launch.run_one(programs.score_kernel, launch.tiles(TILINGS["score"]), *given, EPS=eps)
    return scores, inverse_rms


def normed_dot_backward(
    grad: Tensor, x: Tensor, query: Tensor, scores: Tensor, inverse_rms: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the query."""
    x, launch = x.contiguous(), _Launch([x])
    count = min(PROGRAMS, launch.tiles(TILINGS["score"]))
    of_x = torch.empty_like(x)
    of_query = torch.empty((count, launch.size), dtype=launch.exact, device=x.device)
    given = (grad.contiguous(), x, query.contiguous(), scores.contiguous(), inverse_rms.contiguous())
    launch.run_one(programs.score_backward_kernel, count, *given, of_x, of_query)
    return of_x, of_query.sum(0)


class _Launch:
    """Sizes and dtypes that every kernel over some sources shares, and the order of those: the wide dtype's come first.

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
        self.narrow = TRITON_DTYPES[narrow.pop() if narrow else self.wide]
        self.exact = torch.promote_types(self.wide, torch.float32)
        self.order = sorted(range(len(sources)), key=lambda n: sources[n].dtype != self.wide)
        self.num_wide = sum(x.dtype == self.wide for x in sources)
        self.tile_size = int(triton.next_power_of_2(self.size))

    def tile_rows(self, tiling: Tiling) -> int:
        """Rows of a program's tile."""
        return max(1, min(tiling.elements // self.tile_size, int(triton.next_power_of_2(self.rows))))

    def tiles(self, tiling: Tiling) -> int:
        """Tiles that hold all rows."""
        return -(-self.rows // self.tile_rows(tiling))

    def tables(self, *each: Sequence[Tensor | None]) -> list[Tensor]:
        """For each sequence, on the device int64 [2N]: addresses, 0 for none, the wide dtype's first; then, in that
        order, which source each is."""
        ordered = [[xs[n] for n in self.order] for xs in each]
        numbers = [[0 if x is None else x.data_ptr() for x in xs] + self.order for xs in ordered]
        flat = torch.tensor([number for some in numbers for number in some], pin_memory=self.device.type == "cuda")
        # One copy for all, from pinned memory, so that it waits for nobody.
        return list(torch.split(flat.to(self.device, non_blocking=True), [len(some) for some in numbers]))

    def run(self, kernel: Any, tiling: Tiling, *arguments: Any, **options: Any) -> None:
        """Launch a kernel, a program for each tile."""
        # The first argument is a table of the sources.
        count = arguments[0].numel() // 2
        wider = max(1, self.tile_size // tiling.elements)
        # So many threads have half as many registers each.
        sources = max(1, tiling.sources * MOST_WARPS // (2 * tiling.warps * wider))
        self._start(
            kernel[(self.tiles(tiling),)], tiling, *arguments, **options,
            SOURCES=min(sources, tiling.sources, triton.next_power_of_2(count)), WIDE=TRITON_DTYPES[self.wide],
        )  # fmt: skip

    def run_one(self, kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
        """Launch a kernel that reads one source."""
        self._start(kernel[(programs,)], TILINGS["score"], *arguments, self.rows, self.size, **options)

    def _start(self, launched: Any, tiling: Tiling, *arguments: Any, **options: Any) -> None:
        # Triton launches on the current device.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            launched(
                *arguments,
                **options,
                ROWS=self.tile_rows(tiling),
                SIZE=self.tile_size,
                EXACT=TRITON_DTYPES[self.exact],
                num_warps=min(MOST_WARPS, tiling.warps * max(1, self.tile_size // tiling.elements)),
            )


def _prepare(sources: Sequence[Tensor], num_dtypes: int = 2) -> list[Tensor]:
    """Sources as kernels read them: contiguous, of so many dtypes with the common one, aligned to 16 bytes.

    Raises:
        ValueError: they are of several shapes, or not on one device: only their addresses would be known.
    """
    if len(kinds := {(tuple(x.shape), str(x.device)) for x in sources}) > 1:
        raise ValueError(f"sources must be of one shape on one device, not {sorted(kinds)}")
    wide = forms.common_dtype(sources)
    several = len({wide, *(x.dtype for x in sources)}) > num_dtypes
    ready = [(x.to(wide) if several else x).contiguous() for x in sources]
    return [x if x.data_ptr() % 16 == 0 else x.clone() for x in ready]


def _one_dtype(keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values as kernels read them."""
    ready = _prepare([*keys, *values], num_dtypes=1)
    return ready[: len(keys)], ready[len(keys) :]


def _for_rows(weights: Tensor, source: Tensor) -> Tensor:
    """Weights [N], or those of each row of a source [..., D], none of which stands for several any more."""
    if weights.ndim > 1:
        weights = weights.expand(*source.shape[:-1], weights.size(-1))
    return weights.contiguous()


def _per_row(weights: Tensor) -> int:
    return 0 if weights.ndim == 1 else weights.size(-1)
