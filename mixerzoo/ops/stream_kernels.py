"""Launches the Triton kernels of hyper-connections; what they compute is in `stream_programs`.

Letters in shapes: n streams [..., n, D], rows are all but the last two dimensions.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from mixerzoo.ops import forms, stream_programs
from mixerzoo.ops.kernels import TRITON_DTYPES

#: Elements of n × n × part of the width that a program holds at a time.
ELEMENTS = 4096
#: Elements of the small matrices that a program of Sinkhorn's iteration holds.
CELLS = 1024


def stream_read(streams: Tensor, weights: Tensor) -> Tensor:
    """As `mixerzoo.ops.stream_read`, with weights [..., n]."""
    streams, weights = streams.contiguous(), weights.contiguous()
    out = streams.new_empty((*streams.shape[:-2], streams.size(-1)))
    _run(stream_programs.read_kernel, streams, [streams, weights, out])
    return out


def stream_read_backward(grad: Tensor, streams: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the streams and of the weights."""
    streams, weights = streams.contiguous(), weights.contiguous()
    found = torch.empty_like(streams), torch.empty_like(weights)
    _run(stream_programs.read_backward_kernel, streams, [grad.contiguous(), streams, weights, *found])
    return found


def stream_write(streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor) -> Tensor:
    """As `mixerzoo.ops.stream_write`, with weights of each row."""
    streams, post, y = streams.contiguous(), post.contiguous(), y.contiguous()
    out = torch.empty(streams.shape, dtype=forms.common_dtype([streams, y]), device=streams.device)
    # A kernel is given something in the place of what it does not read.
    given = post if mix is None else mix.contiguous()
    _run(stream_programs.write_kernel, streams, [streams, given, post, y, out], MIX=mix is not None)
    return out


def stream_write_backward(grad: Tensor, streams: Tensor, mix: Tensor | None, post: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of the streams, of the weights of the output and of the output, then of the matrix if there is one."""
    streams, post, y = streams.contiguous(), post.contiguous(), y.contiguous()
    of_streams, of_post, of_y = (torch.empty_like(x) for x in (streams, post, y))
    given = post if mix is None else mix.contiguous()
    of_mix = of_post if mix is None else torch.empty_like(given)
    arguments = [grad.contiguous(), streams, given, post, y, of_streams, of_mix, of_post, of_y]
    _run(stream_programs.write_backward_kernel, streams, arguments, MIX=mix is not None)
    return [of_streams, of_post, of_y, *([] if mix is None else [of_mix])]


def sinkhorn(logits: Tensor, iterations: int, floor: float) -> Tensor:
    """As `mixerzoo.ops.sinkhorn`; no entry starts below the floor."""
    logits = logits.contiguous()
    out = torch.empty_like(logits)
    _run_matrices(stream_programs.sinkhorn_kernel, [logits, out], iterations, floor)
    return out


def sinkhorn_backward(grad: Tensor, logits: Tensor, iterations: int, floor: float) -> Tensor:
    """Gradient of the logits."""
    logits = logits.contiguous()
    out = torch.empty_like(logits)
    _run_matrices(stream_programs.sinkhorn_backward_kernel, [grad.contiguous(), logits, out], iterations, floor)
    return out


def _run(kernel: Any, streams: Tensor, arguments: list[Tensor], **options: Any) -> None:
    """Launch a program for each row."""
    num_streams, size = streams.shape[-2:]
    padded = int(triton.next_power_of_2(num_streams))
    part = max(16, min(int(triton.next_power_of_2(size)), ELEMENTS // padded**2))
    exact = TRITON_DTYPES[forms.exact_dtype(streams)]
    with _current(streams):
        kernel[(streams.numel() // (num_streams * size),)](
            *arguments, num_streams, size, **options, STREAMS=padded, SIZE=part, EXACT=exact, num_warps=4
        )


def _run_matrices(kernel: Any, arguments: list[Tensor], iterations: int, floor: float) -> None:
    """Launch programs of several rows of matrices each."""
    logits = arguments[0]
    num_streams = logits.size(-1)
    rows = logits.numel() // num_streams**2
    padded = int(triton.next_power_of_2(num_streams))
    each = max(1, CELLS // padded**2)
    with _current(logits):
        kernel[(-(-rows // each),)](
            *arguments, rows, num_streams, iterations, FLOOR=floor, ROWS=each, STREAMS=padded, num_warps=4
        )


def _current(x: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
