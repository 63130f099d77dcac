"""The optimiser of a recipe, and what it does with each kind of parameter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

_STATE = Field(None, description="bf16 keeps the state in half the room; default: as the weights.")


class AdamwOptimizer(BaseModel):
    """AdamW, fused; its decays are ``train.beta1`` and ``train.beta2``."""

    model_config = _STRICT

    name: Literal["adamw"] = Field("adamw", description="Which optimiser this is.")
    state_precision: Literal["bf16"] | None = _STATE


class MuonOptimizer(BaseModel):
    """Muon for the matrices of the layers, AdamW for all else: embedding, head, vectors and mixer.

    A mixer's parameter is among the matrices where its role says so (`mixerzoo.ParameterRole`).
    """

    model_config = _STRICT

    name: Literal["muon"] = Field("muon", description="Which optimiser this is.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Of the mean of the gradients.")
    nesterov: bool = Field(True, description="Look ahead along the mean.")
    iterations: int = Field(5, ge=1, le=99, description="Newton–Schulz iterations that make the mean orthogonal.")
    scale: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="Of an m×n update: 0.2·√max(m, n), whose size is AdamW's, so that one learning rate serves both; "
        "or the original √max(1, m/n).",
    )
    adamw_learning_rate: float | None = Field(
        None, gt=0, le=1e30, description="Peak learning rate of AdamW; default: that of all."
    )
    state_precision: Literal["bf16"] | None = _STATE


class AdafactorOptimizer(BaseModel):
    """Adafactor with rates that do not depend on the size of the weights, so that zeros can be learned from."""

    model_config = _STRICT

    name: Literal["adafactor"] = Field("adafactor", description="Which optimiser this is.")
    beta1: float | None = Field(
        None, ge=0, lt=1, description="Decay of the mean of the updates; default: none is kept, which saves its room."
    )
    decay_rate: float = Field(-0.8, ge=-10, lt=0, description="The second decay is 1 minus the step to this power.")
    clip_threshold: float = Field(1.0, gt=0, le=1e30, description="Root mean square of an update at most.")


class LionOptimizer(BaseModel):
    """Lion: the sign of a mean of the gradients."""

    model_config = _STRICT

    name: Literal["lion"] = Field("lion", description="Which optimiser this is.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Share of the mean in what the sign is taken of.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the mean.")
    state_precision: Literal["bf16"] | None = _STATE


_Any = Annotated[
    AdamwOptimizer | MuonOptimizer | AdafactorOptimizer | LionOptimizer,
    Field(discriminator="name"),
]
_Name = Literal["adamw", "muon", "adafactor", "lion"]

OptimizerChoice = Annotated[
    _Any,
    BeforeValidator(
        lambda given: {"name": given} if isinstance(given, str) else given, json_schema_input_type=_Any | _Name
    ),
]
"""Any optimiser, told apart by ``name``; a name alone stands for its defaults."""


class VectorGroup(BaseModel):
    """How parameters that never decay are trained."""

    model_config = _STRICT

    learning_rate_factor: float = Field(1.0, gt=0, le=1e6, description="Multiplies the learning rate.")


class ParameterGroup(VectorGroup):
    """How one kind of parameters is trained."""

    weight_decay: float | None = Field(
        None, ge=0, le=1e3, description="Of those that decay by their role; default: train.weight_decay."
    )


class ParameterGroups(BaseModel):
    """What differs between kinds of parameters; each of them is of one kind."""

    model_config = _STRICT

    embedding: ParameterGroup = Field(ParameterGroup(), description="The embedding, and the head where it is tied.")
    head: ParameterGroup = Field(ParameterGroup(), description="The head, where it is not tied.")
    matrices: ParameterGroup = Field(ParameterGroup(), description="The matrices of the layers.")
    vectors: VectorGroup = Field(VectorGroup(), description="Gains of norms, and biases.")
    mixer: ParameterGroup = Field(ParameterGroup(), description="All of the mixer.")


class WidthScaling(BaseModel):
    """Rates and initial weights such that what was tuned on a narrow decoder serves a wide one."""

    model_config = _STRICT

    base_hidden_size: int = Field(ge=1, le=2**24, description="The hidden size at which nothing changes.")


def check_moments(optimizer: Any, beta1: float, beta2: float, *, halved: bool) -> str | None:
    """Why moments in bf16 would stand still, if they would.

    Args:
        optimizer: the choice.
        beta1: of the recipe, for AdamW.
        beta2: likewise.
        halved: whether the weights are bf16 themselves.
    """
    if not (halved or getattr(optimizer, "state_precision", None)) or isinstance(optimizer, AdafactorOptimizer):
        return None
    decays = {"beta1": beta1, "beta2": beta2}
    if isinstance(optimizer, LionOptimizer):
        decays = {"optimizer.beta2": optimizer.beta2}
    elif isinstance(optimizer, MuonOptimizer):
        decays["optimizer.momentum"] = optimizer.momentum
    for key, decay in decays.items():
        if decay > _SLOWEST:
            other = "precision to bf16" if halved else "optimizer.state_precision to null"
            return f"{key} {decay} changes a moment by less than bf16 can hold; set at most {_SLOWEST}, or {other}"
    return None


#: A step changes a moment by a share of 1 − β; bf16 rounds to one of 256 between powers of two.
_SLOWEST = 0.99
