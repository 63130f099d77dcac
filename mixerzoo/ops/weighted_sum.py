"""The weighted sum of N sources.

Letters in shapes: N sources of one shape [..., D].
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixerzoo.ops import forms
from mixerzoo.ops.shared import Read, Unsummed, are_shared, sum_later

#: Forward and backward of 8192 × 1536 bf16 on an H100: the equation takes 0.18 ms a source, the kernel about 1 ms for 4
#: to 25. Compiled, a step of DenseFormer takes 1.045 of residual's as the equation, 1.076 with the kernel.
#: On a CPU the sum of a stack of 8 takes half of the time at 2¹¹ elements, and more time at 2¹⁴.
POLICY = forms.Policy(few=5, compiled=False, stacked=1 << 12)


def weighted_sum(sources: Sequence[Tensor], weights: Tensor, channels: Tensor | None = None) -> Tensor:
    """Σ_n w_n ⊙ x_n, or Σ_n (w_n + c_n) ⊙ x_n.

    Args:
        sources: N tensors [..., D] of at least three dimensions; stacked if small. Their dtypes may differ.
        weights: w: [N] one number each, [N, D] one per channel, or [..., N] one per token.
        channels: c [N, D].

    Returns:
        [..., D], in the widest dtype of the sources.

    Raises:
        ValueError: there are not as many weights as sources, or not one for each channel.
    """
    return weighted_sums(sources, [weights], None if channels is None else [channels])[0]


def weighted_sums(
    sources: Sequence[Tensor], weights: Sequence[Tensor], channels: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Several weighted sums of the same sources, whose gradients come as one.

    Args:
        sources: as in `weighted_sum`.
        weights: w of each sum, all of one kind, as there.
        channels: c [N, D] of each sum; None: no sum has any.

    Returns:
        Each sum [..., D], in the widest dtype of the sources.

    Raises:
        ValueError: there are not as many weights as sources, or not one for each channel, or not as many ``channels``
            as ``weights``, or weights are of several kinds.
    """
    if len({weight.ndim for weight in weights}) > 1:
        raise ValueError(f"weights of shapes {_shapes(*weights)} are of several kinds")
    if channels is not None and len(channels) != len(weights):
        raise ValueError(f"{len(weights)} sums cannot have {len(channels)} weights of channels")
    for way in _ways(weights, channels or []):
        _check(sources, *way)
    if channels is not None and weights[0].ndim <= 2:
        weights = [w.reshape(len(sources), -1) + c for w, c in zip(weights, channels, strict=True)]
        channels = None
    added = list(channels or ())
    form = forms.choose(sources, POLICY, [*weights, *added])
    if form == "naive":
        if forms.stacks(sources, POLICY):
            stack = torch.stack([*sources], dim=-2)
            return tuple(stack_sum(stack, *way) for way in _ways(weights, added))
        return tuple(_naive(sources, weights, added))
    return tuple(sums_op(list(sources), list(weights), added, form == "kernel"))


def _check(sources: Sequence[Tensor], weight: Tensor, channels: Tensor | None = None) -> None:
    """Refuse weights that are not those of the sources: a kernel would read beyond their end."""
    given = weight.size(0 if weight.ndim <= 2 else -1)
    per_channel = [each for each in (weight if weight.ndim == 2 else None, channels) if each is not None]
    width = sources[0].size(-1)
    if given != len(sources) or any(each.shape != (given, width) for each in per_channel):
        shapes = _shapes(weight, channels)
        raise ValueError(f"{len(sources)} sources cannot have weights of shape {shapes}; their width is {width}")


def _shapes(*weights: Tensor | None) -> str:
    return " and ".join(str(list(each.shape)) for each in weights if each is not None)


def _ways(weights: Sequence[Tensor], channels: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The weights of each sum, with those of channels if there are any."""
    return list(zip(weights, channels, strict=True)) if channels else [(weight,) for weight in weights]


def naive(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The equation; arguments as in `weighted_sum`."""
    return _naive(sources, [weights], [])[0]


def _naive(sources: Sequence[Tensor], weights: Sequence[Tensor], channels: Sequence[Tensor]) -> list[Tensor]:
    """The equation of several sums, which are added to in place: new memory costs a CPU more than the arithmetic."""
    dtype = forms.common_dtype(sources)
    ways = [_each(dtype, *way) for way in _ways(weights, channels)]
    adds = torch.addcmul if forms.is_transformed() else Tensor.addcmul_
    totals: list[Tensor] = []
    for n, source in enumerate(sources):
        exact = source.to(dtype)
        for way, each in enumerate(ways):
            first, *others = next(each)
            if n == 0:
                totals.append((first * source).to(dtype))
            else:
                totals[way] = adds(totals[way], first, exact)
            for weight in others:
                totals[way] = adds(totals[way], weight, exact)
    return totals


def stack_sum(stack: Tensor, weights: Tensor, channels: Tensor | None = None) -> Tensor:
    """The equation of a small stack [..., N, D] of the sources; other arguments as in `weighted_sum`."""
    exact = forms.exact_dtype(stack)
    each = weights.to(exact)
    if weights.ndim != 2:
        each = each.unsqueeze(-1)
    if channels is not None:
        each = each + channels.to(exact)
    return (each * stack).sum(-2).to(stack.dtype)


def _each(dtype: torch.dtype, weights: Tensor, channels: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
    """For each source its weight, and that of its channels if there is one: their sum would be of the source's size."""
    if weights.ndim <= 2:
        # Numbers alone widen nothing, vectors would.
        yield from ((weight,) for weight in (weights if weights.ndim == 1 else weights.to(dtype)).unbind(0))
        return
    for n, weight in enumerate(weights.unsqueeze(-2).to(dtype).unbind(-1)):
        yield (weight,) if channels is None else (weight, channels[n].to(dtype))


@torch.library.custom_op("mixerzoo::weighted_sum", mutates_args=(), tags=forms.TAGS)
def sums_op(sources: list[Tensor], weights: list[Tensor], channels: list[Tensor], kernel: bool) -> list[Tensor]:
    if kernel:
        from mixerzoo.ops import kernels

        return [kernels.weighted_sum(sources, *way) for way in _ways(weights, channels)]
    return [total.contiguous() for total in _naive(sources, weights, channels)]


@sums_op.register_fake
def _(sources: list[Tensor], weights: list[Tensor], channels: list[Tensor], kernel: bool) -> list[Tensor]:
    return [sources[0].new_empty(sources[0].shape, dtype=forms.common_dtype(sources)) for _ in weights]


@torch.library.custom_op("mixerzoo::weighted_sum_backward", mutates_args=(), tags=forms.TAGS)
def sums_backward_op(
    grads: list[Tensor],
    sources: list[Tensor],
    weights: list[Tensor],
    channels: list[Tensor],
    wanted: list[bool],
    kernel: bool,
) -> list[Tensor]:
    """Gradients of the sources of which they are wanted, then those of the weights, then those of the channels' weights
    if there are any."""
    exact = forms.exact_dtype(grads[0])
    if kernel:
        from mixerzoo.ops import kernels

        of_sources, of_numbers = kernels.weighted_sum_backward(grads, sources, _ways(weights, channels), wanted)
        per_channel = channels or [weight for weight in weights if weight.ndim == 2]
        sums = [
            torch.stack([_summed(grad * source, exact) for source in sources]).to(like.dtype)
            for grad, like in zip(grads, per_channel, strict=False)
        ]
        return [*of_sources, *of_numbers, *sums]
    dtype = forms.common_dtype(sources)
    ways = [_each(dtype, *way) for way in _ways(weights, channels)]
    summed = {1: tuple(range(grads[0].ndim)), 2: tuple(range(grads[0].ndim - 1))}.get(weights[0].ndim, (-1,))
    found: list[Tensor] = []
    of_weights: list[list[Tensor]] = [[] for _ in weights]
    of_channels: list[list[Tensor]] = [[] for _ in channels]
    # One piece of memory for all products: new ones of this size cost a CPU more than the arithmetic.
    product = torch.empty_like(grads[0])
    for source, is_wanted, *of_ways in zip(sources, wanted, *ways, strict=True):
        of_source: Tensor | None = None
        for way, (grad, each) in enumerate(zip(grads, of_ways, strict=True)):
            for weight in each if is_wanted else ():
                of_source = weight * grad if of_source is None else of_source.addcmul_(weight, grad)
            torch.mul(grad, source, out=product)
            of_weights[way].append(product.sum(summed, dtype=exact))
            if channels:
                of_channels[way].append(_summed(product, exact))
        if of_source is not None:
            found.append(of_source.to(source.dtype).contiguous())
    found += [_source_last(torch.stack(of_weights[way])).to(weight.dtype) for way, weight in enumerate(weights)]
    return found + [torch.stack(of_channels[way]).to(each.dtype) for way, each in enumerate(channels)]


def _source_last(weights: Tensor) -> Tensor:
    """Weights [N], [N, D] or, of each token, [N, …] as [..., N]. In memory sources come first: a CPU takes a fifth of
    the time."""
    return weights.movedim(0, -1) if weights.ndim > 2 else weights


def _summed(product: Tensor, dtype: torch.dtype) -> Tensor:
    """Over all rows: [D]."""
    return product.flatten(0, -2).sum(0, dtype=dtype)


@sums_backward_op.register_fake
def _(
    grads: list[Tensor],
    sources: list[Tensor],
    weights: list[Tensor],
    channels: list[Tensor],
    wanted: list[bool],
    kernel: bool,
) -> list[Tensor]:
    of_sources = [x for x, is_wanted in zip(sources, wanted, strict=True) if is_wanted]
    found = [x.new_empty(x.shape) for x in of_sources]
    if kernel:
        found += [x.new_empty(x.shape) for x in weights]
    else:
        found += [
            _source_last(x.new_empty((len(sources), *grads[0].shape[:-1]) if x.ndim > 2 else x.shape)) for x in weights
        ]
    return found + [x.new_empty(x.shape) for x in channels]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    sources, weights, channels, ctx.kernel = inputs
    ctx.set_materialize_grads(False)
    ctx.counts = [len(sources), len(weights), len(channels)]
    ctx.are_shared = are_shared(sources)
    ctx.save_for_backward(*sources, *weights, *channels)


def _backward(
    ctx: Any, grads: list[Tensor | None]
) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None], None]:
    saved = ctx.saved_tensors  # once: activation checkpointing gives them a single time
    sources, weights, channels = _split(saved, ctx.counts)
    # Weights of a sum that nobody read have no gradient, as where it is no part of the node.
    read = [way for way, grad in enumerate(grads) if grad is not None]
    given = [grad for grad in grads if grad is not None]
    if not given:
        return [None] * len(sources), [None] * len(weights), [None] * len(channels), None
    weights, channels = [weights[way] for way in read], [channels[way] for way in read if channels]
    if torch.is_grad_enabled():
        # Gradients of gradients are wanted: those of the equation have their own.
        counts = [len(sources), len(weights), len(channels)]

        def again(*inputs: Tensor) -> Tensor:
            return torch.cat([total.flatten() for total in _naive(*_split(inputs, counts))])

        grad = torch.cat([grad.flatten() for grad in given])
        found = forms.gradients(again, [*sources, *weights, *channels], grad)
    else:
        if any(ctx.are_shared):
            # An optimizer may step before the backward has come to the sources.
            weights, channels = ([each.clone() for each in part] for part in (weights, channels))
        found = gradients(given, sources, weights, channels, ctx.are_shared, ctx.kernel)
    of_sources, *others = _split(found, [len(sources), len(weights), len(channels)])
    of_weights, of_channels = (dict(zip(read, each, strict=False)) for each in others)
    ways = range(len(grads))
    return (
        [*of_sources],
        [of_weights.get(way) for way in ways],
        [of_channels.get(way) for way in ways] if channels else [],
        None,
    )


def gradients(
    grads: list[Tensor],
    sources: list[Tensor],
    weights: list[Tensor],
    channels: list[Tensor],
    are_shared: Sequence[bool],
    kernel: bool,
) -> list[Tensor]:
    """Gradients of the sources, some `Unsummed`, which hold the weights, then of the weights, then of the channels'
    weights if there are any."""
    later = sum_later(are_shared)
    found: list[Tensor] = sums_backward_op(grads, sources, weights, channels, [not each for each in later], kernel)
    if not any(later):
        return found
    ways = [each.unbind(-1 if each.ndim > 2 else 0) for each in weights]
    no_channels: list[tuple[Tensor | None, ...]] = [(None,) * len(sources)] * len(weights)
    added = [each.unbind(0) for each in channels] or no_channels
    given, whole = iter(found), []
    for n, (source, is_later) in enumerate(zip(sources, later, strict=True)):
        reads = tuple(Read(grad, way[n], each[n]) for grad, way, each in zip(grads, ways, added, strict=True))
        whole.append(unsummed(source, reads, kernel) if is_later else next(given))
    return [*whole, *given]


def unsummed(source: Tensor, reads: tuple[Read, ...], kernel: bool) -> Unsummed:
    """The gradient of a shared source by some reads."""
    return Unsummed(reads, source, functools.partial(_add_up, kernel=kernel))


def _add_up(reads: Sequence[Read], kernel: bool) -> list[Tensor]:
    """The weighted sum of the gradients of reads of one source; several if their weights are of several kinds."""
    kinds: dict[tuple[int, bool, bool], list[Read]] = {}
    for read in reads:
        grad, weight = read.grad, read.weight
        # Of heads, where tokens come first in memory.
        are_turned = grad.ndim > 3 and not grad.is_contiguous() and grad.transpose(1, 2).is_contiguous()
        if weight.ndim > 1:
            weight = weight.expand(grad.shape[:-1])
            weight = weight.transpose(1, 2) if are_turned else weight
        kind = (weight.ndim, read.channels is None, are_turned)
        turned = Read(grad.transpose(1, 2) if are_turned else grad, weight, read.channels)
        kinds.setdefault(kind, []).append(turned)
    totals: list[Tensor] = []
    for (*_, are_turned), alike in kinds.items():
        grads, weights, channels = zip(*alike, strict=True)
        added = [] if channels[0] is None else [torch.stack(channels)]
        (total,) = sums_op([*grads], [_source_last(torch.stack(weights))], added, kernel)
        totals.append(total.transpose(1, 2) if are_turned else total)
    return totals


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Those of the sources, of the weights and of the channels' weights."""
    sources, weights, _ = counts
    return list(tensors[:sources]), list(tensors[sources : sources + weights]), list(tensors[sources + weights :])


sums_op.register_autograd(_backward, setup_context=_keep)
