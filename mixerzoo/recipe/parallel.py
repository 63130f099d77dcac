"""How several devices train one decoder, as a recipe says it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from mixerzoo.recipe.optimizer import OptimizerChoice
from mixerzoo.recipe.precision import Precision

#: Each device has all weights, or a share of them.
Parallel: TypeAlias = Literal["ddp", "fsdp"]


def check_sharding(optimizer: OptimizerChoice, precision: Precision, ema: float | None, compiled: str) -> None:
    """Refuse what is not computed on shares.

    Args:
        optimizer: of the recipe.
        precision: of the recipe.
        ema: of the recipe.
        compiled: ``train.compile``.

    Raises:
        ValueError: there is such a key.
    """
    wrong = {
        f"optimizer {optimizer.name}": optimizer.name != "adamw",
        "optimizer.state_precision": getattr(optimizer, "state_precision", None) is not None,
        f"precision {precision}": precision not in ("float32", "bf16"),
        "ema": ema is not None,
        f"compile {compiled}": compiled != "off",
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ValueError(
            f"parallel fsdp cannot share a run with {' and '.join(found)}; set parallel to ddp, or train with adamw "
            "in float32 or bf16, and with compile off"
        )


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
