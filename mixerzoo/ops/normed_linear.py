"""Linear layers of RMS-normed vectors, which are normed again in the backward in place of being kept.

Letters in shapes: D size of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixerzoo.ops import forms
from mixerzoo.ops.flops import Shape, of_products
from mixerzoo.ops.unit_rms import unit_rms

#: Products of matrices are the vendor's, on CUDA too. Compiled, the equation is fused and recomputed.
POLICY = forms.Policy(few=0, compiled=False)


def normed_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    eps: float,
    gain: Tensor | None = None,
    biases: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """W·(γ ⊙ x / √(mean(x²) + eps)) + b of each W: the norm in float32 (float64 for float64), the products as linear
    layers'.

    Args:
        x: [..., D].
        weights: each W [rows, D].
        eps: of the norm.
        gain: γ [D] of the norm; None: 1.
        biases: b [rows] of each W; None: 0.

    Returns:
        For each W [..., rows], in the dtype of γ ⊙ x, or in autocast's.

    Raises:
        ValueError: there are not as many biases as weights.
    """
    layers = [*weights, *(biases or ())]
    if len(layers) not in (len(weights), 2 * len(weights)):
        raise ValueError(f"{len(weights)} weights cannot have {len(layers) - len(weights)} biases")
    # Autocast casts what a linear layer multiplies, and leaves a node of ours alone.
    device, normed_dtype = x.device.type, x.dtype if gain is None else torch.promote_types(x.dtype, gain.dtype)
    dtype = normed_dtype
    if not x.is_meta and torch.is_autocast_enabled(device) and torch.float64 not in (dtype, weights[0].dtype):
        dtype = torch.get_autocast_dtype(device)
    one_dtype = dtype != normed_dtype or all(part.dtype == dtype for part in layers)
    others = layers if gain is None else [*layers, gain]
    if not one_dtype or forms.choose([x], POLICY, others) == "naive":
        normed = _normed(x, gain, eps)
        return tuple(F.linear(normed, *layer) for layer in _paired(layers, len(weights)))
    return tuple(_op(x, gain, layers, len(weights), dtype, eps))


def _paired(layers: Sequence[Tensor], count: int) -> list[tuple[Tensor, ...]]:
    """Each W with its b, if there are biases."""
    return list(zip(*(layers[first : first + count] for first in range(0, len(layers), count)), strict=True))


def _normed(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    return unit_rms(x, eps) if gain is None else gain * unit_rms(x, eps)


def _naive(
    x: Tensor, gain: Tensor | None, layers: Sequence[Tensor], count: int, dtype: torch.dtype, eps: float
) -> list[Tensor]:
    """The equation, in a dtype; ``layers`` begins with ``count`` weights."""
    normed = _normed(x, gain, eps).to(dtype)
    with forms.no_autocast(x):
        return [F.linear(normed, *(part.to(dtype) for part in layer)) for layer in _paired(layers, count)]


@torch.library.custom_op("mixerzoo::normed_linear", mutates_args=())
def _op(
    x: Tensor, gain: Tensor | None, layers: list[Tensor], count: int, dtype: torch.dtype, eps: float
) -> list[Tensor]:
    return _naive(x, gain, layers, count, dtype, eps)


@_op.register_fake
def _(x: Tensor, gain: Tensor | None, layers: list[Tensor], count: int, dtype: torch.dtype, eps: float) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], weight.size(0)), dtype=dtype) for weight in layers[:count]]


@torch.library.custom_op("mixerzoo::normed_linear_backward", mutates_args=())
def _backward_op(
    grads: list[Tensor], x: Tensor, gain: Tensor | None, layers: list[Tensor], needed: list[bool], eps: float
) -> list[Tensor]:
    """Gradients of x, of the layers, then that of the gain if there is one; none where ``needed`` of these says so."""
    count = len(grads)
    exact = x.to(forms.exact_dtype(x))
    inverse_rms = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
    unit = exact * inverse_rms
    rows = [grad.reshape(-1, grad.size(-1)) for grad in grads]
    found = [x.new_empty(0) for _ in (*layers, *([] if gain is None else [gain]))]
    if any(needed[1 : 1 + count]):
        normed = unit.to(x.dtype) if gain is None else gain * unit.to(x.dtype)
        factor = normed.to(grads[0].dtype).reshape(-1, x.size(-1))
        for n in range(count):
            if needed[1 + n]:
                found[n] = (rows[n].mT @ factor).to(layers[n].dtype)
    for n in range(count, len(layers)):
        if needed[1 + n]:
            found[n] = rows[n - count].sum(0).to(layers[n].dtype)
    if not _needs_normed(gain, needed):
        return [x.new_empty(0), *found]
    of_normed = sum((grad @ weight.to(grad.dtype)).to(exact.dtype) for grad, weight in zip(grads, layers, strict=False))
    assert isinstance(of_normed, Tensor)
    if gain is not None:
        if needed[-1]:
            found[-1] = (of_normed * unit).reshape(-1, x.size(-1)).sum(0).to(gain.dtype)
        of_normed = of_normed * gain
    along = (of_normed * unit).mean(-1, keepdim=True)
    of_x = torch.addcmul(of_normed, unit, along, value=-1).mul_(inverse_rms)
    return [of_x.to(x.dtype), *found]


@_backward_op.register_fake
def _(
    grads: list[Tensor], x: Tensor, gain: Tensor | None, layers: list[Tensor], needed: list[bool], eps: float
) -> list[Tensor]:
    made = zip([x, *layers, *([] if gain is None else [gain])], [_needs_normed(gain, needed), *needed[1:]], strict=True)
    return [each.new_empty(each.shape if used else 0) for each, used in made]


def _needs_normed(gain: Any, needed: Sequence[bool]) -> bool:
    """Whether gradients of normed vectors are needed, for those of x or of a gain."""
    return needed[0] or (gain is not None and needed[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, gain, layers, ctx.count, ctx.dtype, ctx.eps = inputs
    ctx.save_for_backward(x, *layers, *([] if gain is None else [gain]))
    ctx.num_layers = len(layers)


def _backward(
    ctx: Any, grads: list[Tensor]
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None], None, None, None]:
    saved = ctx.saved_tensors
    x, layers, gain = saved[0], saved[1 : 1 + ctx.num_layers], saved[-1] if len(saved) > 1 + ctx.num_layers else None
    of_x, of_gain, of_layers, *_ = ctx.needs_input_grad
    needed = [of_x, *of_layers, *([] if gain is None else [of_gain])]
    if torch.is_grad_enabled():

        def again(x: Tensor, *others: Tensor) -> Tensor:
            layers, gains = others[: ctx.num_layers], others[ctx.num_layers :]
            out = _naive(x, gains[0] if gains else None, layers, ctx.count, ctx.dtype, ctx.eps)
            return torch.cat([each.flatten() for each in out])

        found: list[Tensor | None] = [*forms.gradients(again, saved, torch.cat([grad.flatten() for grad in grads]))]
    else:
        given = _backward_op(grads, x, gain, list(layers), needed, ctx.eps)
        found = [each if used else None for each, used in zip(given, needed, strict=True)]
    return found[0], None if gain is None else found[-1], found[1 : 1 + ctx.num_layers], None, None, None


_op.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.mixerzoo.normed_linear)
def _(x: Shape, gain: Shape | None, layers: Sequence[Shape], count: int, *_: Any, **__: Any) -> int:
    return of_products(x, layers[:count])


@register_flop_formula(torch.ops.mixerzoo.normed_linear_backward)
def _(
    grads: Sequence[Shape],
    x: Shape,
    gain: Shape | None,
    layers: Sequence[Shape],
    needed: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    weights = layers[: len(grads)]
    weighed = [weight for weight, used in zip(weights, needed[1:], strict=False) if used]
    return of_products(x, weighed) + of_products(x, weights if _needs_normed(gain, needed) else [])
