"""Frequencies of the rotary embedding, and how long-context variants scale them.

The options have the names that Hugging Face gives them. Letters in shapes: d rotated part of a head.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: A weight of a logarithm.
Weight = Annotated[float, Field(ge=-1e3, le=1e3)]


class _Scaling(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def scaled(self, frequency: Tensor, theta: float) -> Tensor:
        """The frequencies [d/2] that take the place of plain ones.

        Args:
            frequency: ``theta^(−2i/d)``, in the precision that is wanted.
            theta: the base.
        """
        raise NotImplementedError

    @property
    def amplitude(self) -> float:
        """Factor of cosine and sine."""
        return 1.0


class LinearScaling(_Scaling):
    """Every position counts as ``1/factor`` of one."""

    rope_type: Literal["linear"] = Field(description="Which scaling this is.")
    factor: Positive = Field(description="How many times longer the context becomes.")

    def scaled(self, frequency: Tensor, theta: float) -> Tensor:
        return frequency / self.factor


class YarnScaling(_Scaling):
    """YaRN (arXiv 2309.00071): slow pairs are interpolated, fast ones kept, with a ramp between."""

    rope_type: Literal["yarn"] = Field(description="Which scaling this is.")
    factor: Positive = Field(description="How many times longer the context becomes.")
    original_max_position_embeddings: Length = Field(description="Context length before.")
    attention_factor: Positive | None = Field(
        None, description="Factor of cosine and sine; default: 0.1·ln(factor) + 1."
    )
    beta_fast: Positive = Field(32.0, description="Pairs that turn more often within the old context are kept.")
    beta_slow: Positive = Field(1.0, description="Pairs that turn less often are interpolated.")
    mscale: Weight | None = Field(
        None, description="With mscale_all_dim: weight of ln(factor) in the factor's numerator."
    )
    mscale_all_dim: Weight | None = Field(None, description="With mscale: the same in its denominator.")
    truncate: bool = Field(True, description="Round the ends of the ramp outwards to whole pairs.")

    def scaled(self, frequency: Tensor, theta: float) -> Tensor:
        num_pairs = frequency.numel()
        low, high = (self._pair(turns, num_pairs, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # The upper limit counts elements, not pairs, in every implementation that weights were trained with.
        low, high = max(low, 0), min(high, 2 * num_pairs - 1)
        if low == high:
            high += 0.001
        pairs = torch.arange(num_pairs, dtype=frequency.dtype, device=frequency.device)
        interpolated = ((pairs - low) / (high - low)).clamp(0, 1)
        return frequency / self.factor * interpolated + frequency * (1 - interpolated)

    def _pair(self, turns: float, num_pairs: int, theta: float) -> float:
        """Number of the pair that turns so often within the old context."""
        return num_pairs * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all_dim)
        return self._magnitude(1.0)

    def _magnitude(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


class Llama3Scaling(_Scaling):
    """Llama 3.1: pairs of long wavelength are interpolated, those of short wavelength kept."""

    rope_type: Literal["llama3"] = Field(description="Which scaling this is.")
    factor: Positive = Field(description="How many times longer the context becomes.")
    low_freq_factor: Positive = Field(description="Wavelengths over 1/low_freq_factor of the old context are scaled.")
    high_freq_factor: Positive = Field(description="Wavelengths under 1/high_freq_factor of the old context are kept.")
    original_max_position_embeddings: Length = Field(description="Context length before.")

    def scaled(self, frequency: Tensor, theta: float) -> Tensor:
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        if self.low_freq_factor == self.high_freq_factor:
            return torch.where(turns < self.low_freq_factor, frequency / self.factor, frequency)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency


RopeScaling: TypeAlias = Annotated[LinearScaling | YarnScaling | Llama3Scaling, Field(discriminator="rope_type")]
"""Any scaling, told apart by ``rope_type``."""

#: ``rope_type`` → its options.
SCALINGS: dict[str, type[BaseModel]] = {"linear": LinearScaling, "yarn": YarnScaling, "llama3": Llama3Scaling}


def frequencies(
    head_dim: int,
    theta: float,
    scaling: LinearScaling | YarnScaling | Llama3Scaling | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What each pair [d/2] turns by from one position to the next, in radians.

    Args:
        head_dim: d, even.
        theta: base; unscaled, pair i turns by ``theta^(−2i/d)``.
        scaling: of the frequencies, or None.
        dtype: of the arithmetic and of the result.
        device: of the result.
    """
    pairs = torch.arange(0, head_dim, 2, device=device, dtype=dtype)
    plain = 1.0 / (theta ** (pairs / head_dim))
    return plain if scaling is None else scaling.scaled(plain, theta)


class Rotary(NamedTuple):
    """Of the rotary angles, [B or 1, 1, T, d] each.

    Attributes:
        cos: cosines.
        sin: sines, those of each head's first half with their sign turned.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(
        cls, positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
    ) -> Rotary:
        """Angles of positions [B or 1, T] for heads whose two halves rotate against each other.

        Args:
            positions: integer positions.
            head_dim: d, even.
            theta: base; pair i turns by ``position · theta^(−2i/d)``.
            dtype: of the arithmetic and of the result.
            scaling: of the frequencies, for contexts longer than those of the training.
        """
        frequency = frequencies(head_dim, theta, scaling, dtype=dtype, device=positions.device)
        angles = positions.to(dtype)[:, None, :, None] * frequency
        cos, sin = angles.cos(), angles.sin()
        cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
        if scaling is None or scaling.amplitude == 1.0:
            return cls(cos, sin)
        return cls(cos * scaling.amplitude, sin * scaling.amplitude)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate x [B, heads, T, d]."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([second, first], dim=-1) * self.sin
        # In place, for new memory of this size costs a CPU more than the arithmetic.
        return (x * self.cos).add_(turned).to(x.dtype)
