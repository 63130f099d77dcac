"""A source that many sites read: what all of them say of its gradient is summed at once.

A read that weighs a source with w and is told the gradient g of its sum gives the source w·g. Added up one by one, as
autograd does, the products of N readers are N vectors of the source's size, each written and read again. Here a read
gives its w and g themselves, autograd joins them to longer lists, and the weighted sum of the g of all readers is made
where the source was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mixerzoo.ops import forms


def shared(source: Tensor) -> Tensor:
    """The same source for many readers, whose gradients are added up at once where these operations weigh it.

    Args:
        source: [..., D]; other readers may read it, too.

    Returns:
        A view of it. Itself where no gradient is wanted, and where the equations are computed (`mixerzoo.ops.forms`),
        as for small sources.
    """
    if not (torch.is_grad_enabled() and source.requires_grad) or source.is_meta or torch.compiler.is_compiling():
        return source
    form = forms.forced_form()
    if form == "naive" or (form is None and source.numel() < forms.SMALLEST):
        return source
    share: Callable[[Tensor], Tensor] = _Shared.apply
    return share(source)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        return source.view_as(source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.summed() if isinstance(grad, Unsummed) else grad


def are_shared(sources: Sequence[Tensor]) -> list[bool]:
    """Of each source whether it takes `Unsummed` gradients."""
    return [isinstance(source.grad_fn, _Shared._backward_cls) for source in sources]


class Read(NamedTuple):
    """A source's gradient by one weighted sum, w·g.

    Attributes:
        grad: g, of the sum [..., D].
        weight: w of the source: a number, [D] one per channel, or [...] one per token; None: 1.
        channels: what is added to weights of tokens [D], or None.
    """

    grad: Tensor
    weight: Tensor | None
    channels: Tensor | None = None


class Unsummed(Tensor):
    """A gradient as the reads that it is the sum of. Whatever else is done with it is done with the sum.

    Args:
        reads: one or more.
        source: of which it is the gradient.
        add_up: adds reads that have weights, and gives one total [..., D] or more, which are new.
    """

    reads: tuple[Read, ...]
    add_up: Callable[[Sequence[Read]], list[Tensor]]

    def __new__(cls, reads: tuple[Read, ...], source: Tensor, add_up: Callable[[Sequence[Read]], list[Tensor]]) -> Self:
        made: Self = Tensor._make_wrapper_subclass(cls, source.shape, dtype=source.dtype, device=source.device)
        made.reads, made.add_up = reads, add_up
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A tensor's own would take what is computed of the sum for one of these.
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch declares it without its first arguments
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.add.Tensor and not kwargs and args[0].dtype == args[1].dtype:
            # The engine joins the gradients of two readers.
            first, second = args
            unsummed = first if isinstance(first, cls) else second
            return cls(_reads(first) + _reads(second), unsummed, unsummed.add_up)
        args, kwargs = tree_map_only(cls, cls.summed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def summed(self) -> Tensor:
        """The gradient itself."""
        total, *others = self.add_up([read for read in self.reads if read.weight is not None])
        for each in (*others, *(read.grad for read in self.reads if read.weight is None)):
            total = total.add_(each)
        return total.to(self.dtype)


def _reads(grad: Tensor) -> tuple[Read, ...]:
    return grad.reads if isinstance(grad, Unsummed) else (Read(grad, None),)
