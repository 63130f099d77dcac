"""How tensors of a cache are kept: in place where storage is fixed, and known to the compiler as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def static(make: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    """A tensor made by ``make`` that stays where it is: writable in every mode, and known to the compiler as such."""
    # Made in inference mode it would be read-only outside of it.
    with torch.inference_mode(mode=False):
        made = make(*arguments, **options)
    # Without a guard, so that other caches of the same sizes are served by the same compiled code.
    torch._dynamo.mark_static_address(made, guard=False)
    return made


def replaced(data: Tensor, new: Tensor, *, fixed: bool) -> Tensor:
    """Storage with the content ``new``: that of ``data`` where it is fixed, has room and is no part of a graph."""
    if not fixed:
        # A copy, so that the dropped past does not stay alive behind a view.
        return new.clone()
    if data.requires_grad or new.requires_grad:
        return new
    if data.size() != new.size():
        return static(torch.clone, new)
    data.copy_(new)
    return data


def arriving(seen: Tensor, new: Tensor, room: int, dim: int, *, fixed: bool) -> Tensor:
    """What `taken_in` needs of tokens that storage for the newest ones is given; nothing is written.

    Args:
        seen: what it holds and the new tokens.
        new: these alone.
        room: tokens that it holds at most, and if fixed always.
        dim: of tokens.
        fixed: whether its storage is.

    Returns:
        Its whole content where it is fixed, since that lies there already; else as many of the new tokens as it takes.
    """
    source = seen if fixed else new
    newest = source.narrow(dim, max(0, source.size(dim) - room), min(room, source.size(dim)))
    # A copy, so that a long prompt does not stay alive behind a view.
    return newest.clone() if new.size(dim) > room else newest


def taken_in(data: Tensor, arrived: Tensor, room: int, dim: int, *, fixed: bool) -> Tensor:
    """Storage for the newest tokens once those have come of which `arriving` told; arguments as there."""
    if fixed:
        return replaced(data, arrived, fixed=True)
    stay = min(data.size(dim), room - arrived.size(dim))
    return torch.cat([data.narrow(dim, data.size(dim) - stay, stay), arrived], dim=dim)


def writable(data: Tensor) -> Tensor:
    """``data``, or a copy where it was made in inference mode and that is over: such tensors are read-only then."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not data.is_inference():
        return data
    return data.clone()


def cleared(data: Tensor, start: int, stop: int) -> Tensor:
    """``data`` with positions ``start … stop − 1`` zeroed, in place unless it is part of a graph."""
    if data.requires_grad:
        return torch.cat([data[:, :, :start], torch.zeros_like(data[:, :, start:])], dim=2)
    data = writable(data)
    data[:, :, start:stop] = 0
    return data
