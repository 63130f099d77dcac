"""What a checkpoint loses."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor

from mixerzoo import (
    DecoderShape,
    MixerConfig,
    ReferenceReading,
    Site,
)
from mixerzoo_plugins.residual import Residual
from wrong.basis import Strided, caught_by


@caught_by("config_round_trip")
class AllowsUnknownOptions(Strided):
    """A misspelt option is silently dropped."""

    class Config(MixerConfig):
        """Options."""

        model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
        stride: int = Field(1, ge=1, description="Steps between two weighted ones.")


@caught_by("config_round_trip")
class ChangesItsOptions(Strided):
    """Counts the stride from zero and stores it from one, so that every reading adds one."""

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, description="Steps between two weighted ones.")

        @field_validator("stride")
        @classmethod
        def from_one(cls, value: int) -> int:
            """Off by one, every time."""
            return value + 1


@caught_by("config_round_trip")
class LosesItsOptions(Strided):
    """An option that is left out of what is saved."""

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, exclude=True, description="Steps between two weighted ones.")


@caught_by("state_dict_round_trip")
class KeepsWeightsAsAttribute(Residual):
    """A drawn weight is a float of the module; the state dict knows nothing of it."""

    scale = 1.0

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        self.scale = float(torch.rand((), generator=generator))

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.scale * y


@caught_by("checkpoint_round_trip")
class RewritesItsConfig(Strided):
    """Replaces its options by derived ones, and derives again when it is loaded."""

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config.model_copy(update={"stride": 2 * config.stride}), shape)


@caught_by("stock_checkpoints")
class RecognisesEverything(Residual):
    """Takes every checkpoint for its own."""

    @classmethod
    def read_reference(cls, config: Any, tensors: Any) -> ReferenceReading | None:
        return ReferenceReading(options={})
