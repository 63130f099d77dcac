"""Which form of an operation runs: the equation, one node with a backward of its own, or a Triton kernel.

Mixers do not choose. The device and the size do, or, for tests and measurements, `forced`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Form: TypeAlias = Literal["naive", "fused", "kernel"]

#: Elements of a source from which a form other than the equation is worth its call. On a CPU, forward and backward of
#: the fused form over 17 sources take 1.2 to 1.7 of the equation's time up to 2¹⁵ elements, 1.0 to 1.2 at 2¹⁷ and 0.5
#: to 0.9 at 2²⁰.
SMALLEST = 1 << 17

#: From so many small sources on, a copy of all of them costs less than a call for each.
FEWEST_STACKED = 3

#: Kernels read their sources' addresses from memory that is written at every call, which a CUDA graph would not repeat.
TAGS = (torch.Tag.cudagraph_unsafe,)


@dataclass(frozen=True)
class Policy:
    """When the forms of one operation are worth it.

    Attributes:
        few: up to so many sources, the equation is as fast as a kernel.
        compiled: whether a kernel is worth it under ``torch.compile`` too, which fuses the equation itself.
        always: whether the fused form is faster than the equation even where nothing is kept for a backward.
        stacked: up to so many elements of a source the equation is faster on a stack of all sources.
    """

    few: int
    compiled: bool
    always: bool = False
    stacked: int = 0


#: Looked for once, because a compiler that traces `choose` cannot look.
HAS_TRITON = importlib.util.find_spec("triton") is not None

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


def forced_form() -> Form | None:
    """The form that must run: the one that `forced` asks for, or the equation where `torch.func` transforms it."""
    return "naive" if is_transformed() else _forced


def is_transformed() -> bool:
    """Whether ``torch.func`` transforms what runs, where tensors may lack a dimension that others have."""
    return torch._C._are_functorch_transforms_active()


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Products inside are computed in the dtype of their factors, also under autocast."""
    # The meta device computes nothing, and has no autocast to turn off; where none is on, turning it off takes longer
    # than a small product.
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def choose(sources: Sequence[Tensor], policy: Policy, others: Sequence[Tensor] = ()) -> Form:
    """The form for these sources.

    Args:
        sources: N tensors.
        policy: the operation's.
        others: further inputs that may need gradients.
    """
    form = forced_form()
    if form is not None:
        return form
    if sources[0].is_meta:
        # Shapes alone are asked for, and a node gives them at once.
        return "fused"
    has_kernel = sources[0].is_cuda and HAS_TRITON
    # The compiler fuses the equation, and recomputes instead of keeping.
    compiles = torch.compiler.is_compiling() and not (has_kernel and policy.compiled)
    if compiles or sources[0].numel() < SMALLEST:
        return "naive"
    if has_kernel:
        return "kernel" if len(sources) > policy.few else "naive"
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (*sources, *others))
    return "fused" if graph or policy.always else "naive"


def stacks(sources: Sequence[Tensor], policy: Policy) -> bool:
    """Whether the equation is computed of a stack of the sources, which are small: in decoding, whose steps are made of
    calls. It does not depend on whether gradients are wanted, and so neither do the bits.

    Args:
        sources: N tensors.
        policy: the operation's.
    """
    if torch.compiler.is_compiling() or forced_form() is not None or len(sources) < FEWEST_STACKED:
        return False
    first = sources[0]
    return first.numel() <= policy.stacked and all(source.dtype == first.dtype for source in sources)


def exact_dtype(x: Tensor) -> torch.dtype:
    """Where weights are computed: float64 for float64 inputs, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def common_dtype(sources: Sequence[Tensor]) -> torch.dtype:
    """The dtype that holds them all (under autocast the embedding is wider than what layers give)."""
    return functools.reduce(torch.promote_types, [source.dtype for source in sources])


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of what a function makes of the inputs by autograd, which can be differentiated again; None for inputs
    that need none."""
    # Of views: that one input is made of another is not this function's, and who has a hook at an input is told of its
    # gradient once.
    views = [x.view_as(x) for x in inputs]
    wanted = [x for x in views if x.requires_grad]
    found = iter(torch.autograd.grad(function(*views), wanted, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in views]  # type: ignore[misc]
