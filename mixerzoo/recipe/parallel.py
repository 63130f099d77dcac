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
    # What is not computed, and what to set instead.
    wrong = {
        (f"optimizer {optimizer.name}", "optimizer to adamw"): optimizer.name != "adamw",
        ("optimizer.state_precision", "optimizer.state_precision to null"): (
            getattr(optimizer, "state_precision", None) is not None
        ),
        (f"precision {precision}", "precision to float32 or bf16"): precision not in ("float32", "bf16"),
        ("ema", "ema to null"): ema is not None,
        (f"compile {compiled}", "compile to off"): compiled != "off",
    }
    found = [words for words, is_wrong in wrong.items() if is_wrong]
    if found:
        names, instead = (" and ".join(words) for words in zip(*found, strict=True))
        raise ValueError(f"parallel fsdp cannot share a run with {names}; set {instead}, or parallel to ddp")


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
