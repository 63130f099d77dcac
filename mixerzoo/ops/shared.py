"""A source that many sites read: what all of them say of its gradient is summed at once.

A read that weighs a source with w and is told the gradient g of its sum gives the source w·g. Added up one by one, as
autograd does, the products of N readers are N vectors of the source's size, each written and read again. Here a read
gives its w and g themselves, autograd joins them to longer lists, and the weighted sum of the g of many readers is made
in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mixerzoo.ops import forms

#: From so many reads on they are summed. Until then their g are held, which are more than the gradients of few sources:
#: a layer may make several sums, and on a CPU those of a softmax over sources in bfloat16 are in float32.
AT_ONCE = 16


def shared(source: Tensor) -> Tensor:
    """The same source for many readers, whose gradients are added up together where these operations weigh it.

    Args:
        source: [..., D]; other readers may read it, too. Neither it nor what is returned may be changed in place.

    Returns:
        A view of it. Itself where no gradient is wanted, under a compiler, on the meta device, and where the equations
        are computed (`mixerzoo.ops.forms`), as for small sources. What wraps the view in another node, as FSDP2 does at
        every layer, has gradients added up one by one.
    """
    if not (torch.is_grad_enabled() and source.requires_grad) or source.is_meta or torch.compiler.is_compiling():
        return source
    form = forms.forced_form()
    if form == "naive" or (form is None and source.numel() < forms.SMALLEST):
        return source
    share: Callable[[Tensor], Tensor] = _Shared.apply
    view = share(source)
    # Before all other hooks, and before autograd gives the gradient to whoever asked for it.
    view.register_hook(_summed)
    return view


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return source.view_as(source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        return grad


def _summed(grad: Tensor) -> Tensor:
    return grad.summed() if isinstance(grad, Unsummed) else grad


def are_shared(sources: Sequence[Tensor]) -> list[bool]:
    """Of each source whether it takes `Unsummed` gradients."""
    return [isinstance(source.grad_fn, _Shared._backward_cls) for source in sources]


def sum_later(shared: Sequence[bool]) -> list[bool]:
    """Of sources of which some take `Unsummed` gradients, which are given them: none by a compiler that traces the
    backward, and sums by itself."""
    return [each and not torch.compiler.is_compiling() for each in shared]


class Read(NamedTuple):
    """A source's gradient by one weighted sum, w·g.

    Attributes:
        grad: g, of the sum [..., D].
        weight: w of the source: a number, [D] one per channel, or [...] one per token.
        channels: what is added to weights of tokens [D], or None.
    """

    grad: Tensor
    weight: Tensor
    channels: Tensor | None = None


#: Adds up reads, into one total [..., D] or more, which are new.
AddUp = Callable[[Sequence[Read]], list[Tensor]]


class Unsummed(Tensor):
    """A gradient as the reads that it is the sum of. What is done with it is done with the sum; in place nothing is.

    Args:
        reads: one or more, or none where there is a rest.
        source: of which it is the gradient.
        add_up: of the reads.
        rest: what is added to their sum, of the source's shape and dtype.
    """

    reads: tuple[Read, ...]
    add_up: AddUp
    rest: Tensor | None

    def __new__(cls, reads: tuple[Read, ...], source: Tensor, add_up: AddUp, rest: Tensor | None = None) -> Self:
        made: Self = Tensor._make_wrapper_subclass(cls, source.shape, dtype=source.dtype, device=source.device)
        made.reads, made.add_up, made.rest = reads, add_up, rest
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
        # The engine joins the gradients of two readers.
        if func is torch.ops.aten.add.Tensor and not kwargs and _are_alike(*args):
            first, second = args
            return first.joined(second) if isinstance(first, cls) else second.joined(first)
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise RuntimeError(f"{func} would change a gradient that is not summed yet")
        args, kwargs = tree_map_only(cls, cls.summed, (args, kwargs or {}))
        return func(*args, **kwargs)

    def joined(self, other: Tensor) -> Tensor:
        """The sum with another gradient of the source."""
        reads, rest = (other.reads, other.rest) if isinstance(other, Unsummed) else ((), other)
        if self.rest is not None:
            # Not in place: either may be somebody else's.
            rest = self.rest if rest is None else self.rest + rest
        found = Unsummed(self.reads + reads, self, self.add_up, rest)
        return found if len(found.reads) < AT_ONCE else Unsummed((), self, self.add_up, found.summed())

    def summed(self) -> Tensor:
        """The gradient itself."""
        if not self.reads:
            assert self.rest is not None
            return self.rest
        total, *others = self.add_up(self.reads)
        for each in others if self.rest is None else (*others, self.rest):
            total = total.add_(each)
        return total.to(self.dtype)


def _are_alike(first: object, second: object) -> bool:
    """Whether both are gradients of one source."""
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and (first.shape, first.dtype) == (second.shape, second.dtype)
    )
