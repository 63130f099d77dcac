"""Cross-entropy of a head's predictions without its logits: they are computed chunk by chunk and dropped.

`torch.nn.functional.linear_cross_entropy` (PyTorch 2.13) is not used: its loss of bfloat16 is a bfloat16, that of
float32 errs by more than that of the logits does, and it takes no part in autocast.
Letters in shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

#: Scores of a chunk below which none is made smaller: a product of few rows is slow.
_SMALLEST = 2**24
#: Chunks at most, where they are no smaller than that: each adds to the whole gradient of the head.
_MOST_CHUNKS = 8
#: The target of a token that is not counted.
IGNORED = -100

Reduction = Literal["mean", "sum"]


def chunk_tokens(num_tokens: int, vocab_size: int) -> int:
    """Tokens whose logits are there at a time.

    Args:
        num_tokens: N.
        vocab_size: V.
    """
    return max(1, min(num_tokens, max(_SMALLEST // vocab_size, -(-num_tokens // _MOST_CHUNKS))))


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in float32 or wider; without gradients.

    Args:
        hidden: [..., D].
        weight: of the head, [V, D]. The product is computed in the autocast dtype where there is one.
        targets: int64 [...]; the loss of one that is `IGNORED` is 0.

    Returns:
        As `targets`.
    """
    counted = targets != IGNORED
    return target_scores(hidden, weight, torch.where(counted, targets, 0))[0].masked_fill_(~counted, 0)


@torch.no_grad()
def target_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_losses`, all of which count, and whether each target is the most likely token.

    Args:
        hidden: [..., D].
        weight: of the head, [V, D].
        targets: int64 [...].

    Returns:
        As `targets`, in float32 or wider, and as booleans.
    """
    dtype = _compute_dtype(hidden)
    rows, wanted, weight = hidden.reshape(-1, hidden.size(-1)).to(dtype), targets.reshape(-1), weight.to(dtype)
    losses, likeliest = [], []
    for part in list(_parts(len(wanted), len(weight))) or [slice(0)]:
        logits = _logits(rows[part], weight)
        likeliest.append(logits.argmax(-1) == wanted[part])
        losses.append(_log_probabilities(logits).gather(1, wanted[part, None]).neg_()[:, 0])
    return torch.cat(losses).view(targets.shape), torch.cat(likeliest).view(targets.shape)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, reduction: Reduction = "mean", ignore_index: int = IGNORED
) -> Tensor:
    """The same as ``cross_entropy(linear(hidden, weight).float(), targets)``, in float64 for float64.

    Gradients are computed in the forward, where the logits are. They can be used once, and not be differentiated.

    Args:
        hidden: [..., D].
        weight: of the head, [V, D]. The product is computed in the autocast dtype where there is one.
        targets: int64 [...].
        reduction: over all targets that count.
        ignore_index: of targets that do not.

    Returns:
        A scalar.
    """
    rows, wanted = hidden.reshape(-1, hidden.size(-1)), targets.reshape(-1)
    counted = wanted != ignore_index
    dtype = _compute_dtype(hidden)
    run = _op_loss if torch.compiler.is_compiling() else _ChunkedLoss.apply
    exact = torch.promote_types(dtype, torch.float32)
    total: Tensor = run(rows, weight, torch.where(counted, wanted, 0), counted.to(exact), dtype)
    # Divided here and not in the gradients by the logits: a share of one among many tokens is 0 in float16, and the
    # scale of a loss that is to prevent that comes later.
    return total / counted.sum() if reduction == "mean" else total


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _parts(num_tokens: int, vocab_size: int) -> Iterator[slice]:
    size = chunk_tokens(num_tokens, vocab_size)
    return (slice(start, start + size) for start in range(0, num_tokens, size))


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ weight.t()


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _sum_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, dtype: torch.dtype, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The losses of all tokens that count, and the gradients by hidden [N, D] and weight [V, D].

    float16 may not hold the latter before it is divided by the number of tokens, so it is then wider.
    """
    rows, head, exact = hidden.to(dtype), weight.to(dtype), counted.dtype
    losses = torch.empty_like(counted)
    of_hidden = torch.empty_like(hidden) if needs[0] else None
    # Summed up in the precision of the loss, whatever that of the products is.
    of_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs[1] else None
    for part in _parts(len(targets), len(weight)):
        scores = _log_probabilities(_logits(rows[part], head))
        losses[part] = scores.gather(1, targets[part, None])[:, 0]
        if not any(needs):
            continue
        # By the logits: the probabilities, but for 1 less at the target.
        scores.exp_().scatter_add_(1, targets[part, None], scores.new_full((len(scores), 1), -1.0))
        by_logits = scores.mul_(counted[part, None]).to(dtype)
        with torch.autocast(rows.device.type, enabled=False):
            if of_hidden is not None:
                of_hidden[part] = by_logits @ head
            if of_weight is not None and of_weight.dtype == dtype:
                of_weight.addmm_(by_logits.t(), rows[part])
            elif of_weight is not None and dtype == torch.float16:
                smaller, factor = _summable(rows[part])
                of_weight += (by_logits.t() @ smaller).to(exact).mul_(factor)
            elif of_weight is not None:
                of_weight += by_logits.t() @ rows[part]
    if of_weight is not None and weight.dtype != torch.float16:
        of_weight = of_weight.to(weight.dtype)
    return losses.mul_(counted).sum().neg_(), of_hidden, of_weight


def _summable(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, D] that float16 can hold sums of, with weights from −1 to 1, and by what those are to be multiplied."""
    largest = rows.abs().amax().float() * len(rows)
    # A power of two, so that nothing is rounded but what is tiny beside the largest.
    factor = torch.exp2((largest / torch.finfo(rows.dtype).max).log2().ceil().clamp(0, 15))
    return rows / factor.to(rows.dtype), factor


def _times(found: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    """A product that does not round the factor to a shorter dtype first."""
    if found.dtype.itemsize < factor.dtype.itemsize:
        return (found.to(factor.dtype) * factor).to(found.dtype)
    return torch.mul(found, factor, out=out)


class _ChunkedLoss(torch.autograd.Function):
    """The loss; its gradients are those of the forward, times what comes back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, dtype: torch.dtype
    ) -> Tensor:
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        loss, of_hidden, of_weight = _sum_and_gradients(hidden, weight, targets, counted, dtype, needs)
        ctx.gradients, ctx.dtypes = (of_hidden, of_weight), (hidden.dtype, weight.dtype)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were used before; compute the loss again")
        # In place: beside a head's gradient there is seldom room for another.
        of_hidden, of_weight = (
            None if found is None else _times(found, grad, out=found).to(dtype)
            for found, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        ctx.gradients = None
        return of_hidden, of_weight, None, None, None


@torch.library.custom_op("mixerzoo::linear_cross_entropy", mutates_args=())
def _op(
    hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, dtype: torch.dtype, graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One node of a compiled graph; without a graph of gradients these are empty."""
    loss, *found = _sum_and_gradients(hidden, weight, targets, counted, dtype, (graph, graph))
    of_hidden, of_weight = (hidden.new_empty(0) if each is None else each for each in found)
    return loss, of_hidden, of_weight


@_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, dtype: torch.dtype, graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = counted.new_empty(())
    none = hidden.new_empty(0)
    kept = counted.dtype if weight.dtype == torch.float16 else weight.dtype
    return loss, torch.empty_like(hidden) if graph else none, torch.empty_like(weight, dtype=kept) if graph else none


def _op_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtypes = inputs[0].dtype, inputs[1].dtype
    ctx.save_for_backward(*output[1:])


def _op_backward(
    ctx: Any, grad: Tensor | None, *unused: Any
) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None, None
    of_hidden, of_weight = (
        _times(found, grad).to(dtype) for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )
    return of_hidden, of_weight, None, None, None, None


_op.register_autograd(_op_backward, setup_context=_op_keep)


def _op_loss(hidden: Tensor, weight: Tensor, targets: Tensor, counted: Tensor, dtype: torch.dtype) -> Tensor:
    graph = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss: Tensor = _op(hidden, weight, targets, counted, dtype, graph)[0]
    return loss
