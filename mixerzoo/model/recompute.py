"""Which activations are computed again in the backward, in place of being kept since the forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mixerzoo import ops


class EveryNth(BaseModel):
    """Recompute one step in so many, the first among them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    every: int = Field(ge=1, le=256, description="One step in so many is computed again; 1: each.")


#: Of each step nothing is computed again, all of it, or all but its linear layers and its attention.
Recompute: TypeAlias = Literal["none", "layers", "selective"] | EveryNth

_aten = torch.ops.aten
#: What takes most of a step's time: linear layers and attention's kernels. Batched products are left out: of a mixer
#: there may be one for each pair of sublayers, and of attention without a kernel they are as large as all scores.
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        *ops.PRODUCTS,
    }
)


def recomputes(mode: Recompute, step: int) -> bool:
    """Whether something of a step is computed again.

    Args:
        mode: of the decoder.
        step: number of the step.
    """
    return step % mode.every == 0 if isinstance(mode, EveryNth) else mode != "none"


def recomputed(run_layer: Callable[..., Any], mode: Recompute, step: int) -> Callable[..., Any]:
    """A step that keeps of its activations what a mode says.

    Args:
        run_layer: the step.
        mode: of the decoder.
        step: number of the step.
    """
    if not recomputes(mode, step):
        return run_layer
    # Non-re-entrant: the re-entrant variant loses the gradients of tensors inside the state.
    if mode != "selective":
        return partial(checkpoint, run_layer, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, run_layer, use_reentrant=False, context_fn=contexts)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
