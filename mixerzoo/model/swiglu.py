"""The gate of an MLP, whose backward needs its two inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.ops import forms

#: Without a graph it is the same in less memory.
POLICY = forms.Policy(few=0, compiled=False, always=True)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up. Autograd would keep silu(gate) beside both, a quarter of what an MLP keeps.

    Args:
        gate: [..., width].
        up: [..., width].
    """
    # A compiler fuses the equation, and recomputes; it is not to see the node, whatever form is forced.
    if not torch.compiler.is_compiling() and _are_alike(gate, up) and forms.choose([gate], POLICY, [up]) != "naive":
        learning = [x.requires_grad and torch.is_grad_enabled() for x in (gate, up)]
        if not any(learning):
            return F.silu(gate).mul_(up)
        if all(learning):
            run: Callable[[Tensor, Tensor], Tensor] = _SwiGLU.apply
            return run(gate, up)
    return F.silu(gate) * up


def _are_alike(gate: Tensor, up: Tensor) -> bool:
    """Whether these are plain tensors of one kind.

    What traces calls without tensors, as serving engines do, or has tensors of its own, is to see the equation.
    """
    return type(gate) is type(up) is Tensor and gate.dtype == up.dtype and gate.shape == up.shape


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Gradients of gradients are wanted: those of the equation have their own.
            of_gate, of_up = forms.gradients(lambda gate, up: F.silu(gate) * up, [gate, up], grad)
            return of_gate, of_up
        # As autograd does it, bit for bit.
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate) * grad
