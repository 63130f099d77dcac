"""Which form of an operation runs: the equation, one node with a backward of its own, or a Triton kernel.

Mixers do not choose. The device and the size do, or, for tests and measurements, `forced`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Form: TypeAlias = Literal["naive", "fused", "kernel"]

#: Elements of a source from which a kernel is worth its launch.
SMALLEST_KERNEL = 1 << 18

#: Kernels read their sources' addresses from memory that is written at every call, which a CUDA graph would not repeat.
TAGS = (torch.Tag.cudagraph_unsafe,)

_forced: Form | None = None


@contextmanager
def forced(form: Form | None) -> Iterator[None]:
    """Run every operation in one form, in this process; None: as if nothing were forced.

    Args:
        form: ``"naive"`` the equation in PyTorch; ``"fused"`` PyTorch with a backward that keeps sources and weights
            only; ``"kernel"`` Triton (on a CPU only under its interpreter).
    """
    global _forced  # noqa: PLW0603
    before, _forced = _forced, form
    try:
        yield
    finally:
        _forced = before


def choose(sources: Sequence[Tensor]) -> Form:
    """The form for these sources."""
    if _forced is not None:
        return _forced
    if sources[0].is_cuda and sources[0].numel() >= SMALLEST_KERNEL and _has_triton():
        return "kernel"
    if torch.compiler.is_compiling():
        # The compiler fuses the equation, and recomputes instead of keeping.
        return "naive"
    graph = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
    return "fused" if graph else "naive"


def exact_dtype(x: Tensor) -> torch.dtype:
    """Where weights are computed: float64 for float64 inputs, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def common_dtype(sources: Sequence[Tensor]) -> torch.dtype:
    """The dtype that holds them all (under autocast the embedding is wider than what layers give)."""
    return functools.reduce(torch.promote_types, [source.dtype for source in sources])


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def gradients(out: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of ``out`` by autograd, which can be differentiated again; None for inputs that need none."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]  # type: ignore[misc]
