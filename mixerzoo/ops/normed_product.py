"""Products of a matrix with RMS-normed vectors, of which no normed copy is made.

Letters in shapes: D size of a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mixerzoo.ops import forms
from mixerzoo.ops.flops import Shape, of_products

#: Products of matrices are the vendor's, on CUDA too; of a single row a kernel reads x once, where the vendor's product
#: wants a copy in float32. Compiled, the equation is fused and recomputed.
POLICY = forms.Policy(few=0, compiled=False, always=True)


def normed_product(x: Tensor, weight: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    """W·(γ ⊙ x / √(mean(x²) + eps)), exactly, also under autocast.

    Args:
        x: [..., D].
        weight: W [rows, D].
        eps: of the norm.
        gain: γ [D] of the norm; None: 1.

    Returns:
        [..., rows] in float32 (float64 for float64).
    """
    form = forms.choose([x], POLICY, [weight])
    if form == "naive":
        return naive_product(x, weight, eps, gain)
    out, _ = product_op(x, weight, eps, gain, form == "kernel" and weight.size(0) == 1)
    return out  # type: ignore[no-any-return]


def naive_product(x: Tensor, weight: Tensor, eps: float, gain: Tensor | None) -> Tensor:
    exact = x.to(forms.exact_dtype(x))
    matrix = _matrix(weight, gain, exact.dtype)
    # Divided after the product, so that no normed copy is made.
    if torch.compiler.is_compiling() and weight.size(0) == 1:
        # The compiler makes one pass of this and the norm.
        product = (exact * matrix[0]).sum(-1, keepdim=True)
    else:
        with forms.no_autocast(x):
            product = exact @ matrix.mT
    return product * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)


def _matrix(weight: Tensor, gain: Tensor | None, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if gain is None else weight.to(dtype) * gain.to(dtype)


@torch.library.custom_op("mixerzoo::normed_product", mutates_args=())
def product_op(x: Tensor, weight: Tensor, eps: float, gain: Tensor | None, kernel: bool) -> tuple[Tensor, Tensor]:
    """The product, and 1 / rms [..., 1]."""
    exact = forms.exact_dtype(x)
    if kernel:
        from mixerzoo.ops import kernels

        return kernels.normed_dot(x, _matrix(weight, gain, exact)[0], eps)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square()
    inverse_rms = torch.rsqrt(square / x.size(-1) + eps)
    with forms.no_autocast(x):
        product = x.to(exact) @ _matrix(weight, gain, exact).mT
    return product.mul_(inverse_rms), inverse_rms


@product_op.register_fake
def _(x: Tensor, weight: Tensor, eps: float, gain: Tensor | None, kernel: bool) -> tuple[Tensor, Tensor]:
    exact = forms.exact_dtype(x)
    rows = x.shape[:-1]
    return x.new_empty((*rows, weight.size(0)), dtype=exact), x.new_empty((*rows, 1), dtype=exact)


@torch.library.custom_op("mixerzoo::normed_product_backward", mutates_args=())
def product_backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, out: Tensor, inverse_rms: Tensor, kernel: bool
) -> list[Tensor]:
    """Gradients of x and of W, then that of the gain if there is one."""
    matrix = _matrix(weight, gain, grad.dtype)
    if kernel:
        from mixerzoo.ops import kernels

        of_x, of_query = kernels.normed_dot_backward(grad, x, matrix[0], out, inverse_rms)
        of_matrix = of_query.unsqueeze(0)
    else:
        exact = x.to(grad.dtype)
        scaled = grad * inverse_rms
        with forms.no_autocast(x):
            of_x = scaled @ matrix
            of_matrix = scaled.flatten(0, -2).mT @ exact.flatten(0, -2)
        shrink = (grad * out).sum(-1, keepdim=True) * inverse_rms.square() / -x.size(-1)
        of_x = of_x.addcmul_(shrink, exact).to(x.dtype)
    if gain is None:
        return [of_x, of_matrix.to(weight.dtype)]
    of_gain = (of_matrix * weight.to(grad.dtype)).sum(0).to(gain.dtype)
    return [of_x, (of_matrix * gain.to(grad.dtype)).to(weight.dtype), of_gain]


@product_backward_op.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, gain: Tensor | None, out: Tensor, inverse_rms: Tensor, kernel: bool
) -> list[Tensor]:
    return [like.new_empty(like.shape) for like in (x, weight, gain) if like is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps, gain, ctx.kernel = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, *output, *([] if gain is None else [gain]))


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
    x, weight, out, inverse_rms, *gains = ctx.saved_tensors
    gain = gains[0] if gains else None
    if torch.is_grad_enabled():

        def again(x: Tensor, weight: Tensor, *gains: Tensor) -> Tensor:
            return naive_product(x, weight, ctx.eps, gains[0] if gains else None)

        found = forms.gradients(again, [x, weight, *gains], grad)
    else:
        found = product_backward_op(grad, x, weight, gain, out, inverse_rms, ctx.kernel)
    return found[0], found[1], None, found[2] if gains else None, None


product_op.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.mixerzoo.normed_product)
def _(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return of_products(x, [weight])


@register_flop_formula(torch.ops.mixerzoo.normed_product_backward)
def _(grad: Shape, x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * of_products(x, [weight])
