"""PyTorch's flex attention, compiled: a graph for each kind of call, and an error where one kind takes many."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mixerzoo.errors import BackendError
from mixerzoo.model.compiled import copied

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

#: Graphs that calls of one kind may take; lengths are symbols in them, so that one is enough.
_MOST_GRAPHS = 2


class Kind(NamedTuple):
    """What calls must have in common to be served by one graph: what a compiler cannot take for a symbol.

    Attributes:
        gradients: whether there is a graph of gradients.
        inference: whether this is inference mode.
        ones: which sizes are 1: rows, queries, and blocks of queries and keys.
        rule: which of the mask's parts there are; None without a mask.
        heads: heads and their width, of queries, keys and values, for which kernels are made.
        dtype: of queries.
        device: where they are.
    """

    gradients: bool
    inference: bool
    ones: tuple[bool, ...]
    rule: tuple[Any, ...] | None
    heads: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device


def fused_flex(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask | None, rule: tuple[Any, ...], **options: Any
) -> Tensor:
    """Flex attention as one kernel.

    Args:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, d].
        blocks: who sees whom.
        rule: which parts the mask is made of.
        options: of PyTorch's function.

    Raises:
        BackendError: the compiler makes graph after graph, and would from now on compute without a kernel.
    """
    size = (q.size(0), q.size(2), *(() if blocks is None else blocks.kv_indices.shape[-2:]))
    kind = Kind(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tuple(length == 1 for length in size),
        None if blocks is None else (blocks.kv_indices.size(0) == 1, *rule),
        tuple((heads.size(1), heads.size(-1)) for heads in (q, k, v)),
        q.dtype,
        q.device,
    )
    with (
        torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS),
        # Two lengths that happen to be equal are two symbols all the same.
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        try:
            found: Tensor = _compiled(kind)(q, k, v, block_mask=blocks, **options)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise BackendError(
                "the attention backend 'flex' was compiled anew for every call, and would go on without its kernel; "
                "set model.attention_backend to 'sdpa'"
            ) from error
    return found


@functools.cache
def _compiled(kind: Kind) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention as unfused

    def flex(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        return unfused(q, k, v, **options)

    return torch.compile(copied(flex), dynamic=True, fullgraph=True)
