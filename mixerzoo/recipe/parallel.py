"""How several devices train one decoder, as a recipe says it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

#: Each device has all weights, or a share of them.
Parallel: TypeAlias = Literal["ddp", "fsdp"]


class FsdpConfig(BaseModel):
    """How weights, gradients and optimizer state are shared out among devices (FSDP2)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reshard_after_forward: bool = Field(
        True, description="Whether a layer's gathered weights are dropped after its forward, and gathered again later."
    )
    cpu_offload: bool = Field(
        False, description="Whether weights, gradients and optimizer state lie in the machine's memory, not the GPU's."
    )
    mixed_precision: bool = Field(
        False, description="Whether the layers' weights are gathered in bf16, half the bytes; needs precision bf16."
    )
