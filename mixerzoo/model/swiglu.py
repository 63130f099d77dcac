"""The gate of an MLP, whose backward needs its two inputs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.ops import forms

#: A compiler fuses the equation, and recomputes. Without a graph it is the same in less memory.
POLICY = forms.Policy(few=0, compiled=False, always=True)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up. Autograd would keep silu(gate) beside both, a quarter of what an MLP keeps.

    Args:
        gate: [..., width].
        up: [..., width].
    """
    # What traces calls without tensors, as serving engines do, or has tensors of its own, sees the equation.
    plain = type(gate) is type(up) is Tensor and gate.dtype == up.dtype
    if not plain or forms.choose([gate], POLICY, [up]) == "naive":
        return F.silu(gate) * up
    run: Callable[[Tensor, Tensor], Tensor] = _SwiGLU.apply
    return run(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Gradients of gradients are wanted: those of the equation have their own.
            of_gate, of_up = forms.gradients(F.silu(gate) * up, [gate, up], grad)
            return of_gate, of_up
        # As autograd does it, bit for bit.
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)
