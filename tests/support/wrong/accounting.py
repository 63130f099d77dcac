"""Costs and cards that are not true."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from mixerzoo import (
    DecoderShape,
    MixerConfig,
    Plan,
    Site,
)
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.residual import Residual
from wrong.basis import Scaled, caught_by


@caught_by("kv_bytes")
class DeclaresHalfTheCache(Residual):
    """Its card forgets that there are keys and values."""

    card = replace(Residual.card, kv_bytes="L·G·d·e")


@caught_by("kv_bytes")
class ChangesItsPlan(Residual):
    """Plans windows once it has been asked."""

    asked = 0

    def plan(self) -> Plan:
        self.asked += 1
        return replace(super().plan(), windows=(self.asked,) * self.shape.num_steps)


@caught_by("in_flight_bytes")
class DeclaresOneStream(DenseFormer):
    """Forgets its history."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return self.shape.hidden_size * dtype.itemsize


@caught_by("in_flight_bytes")
class KeepsMoreThanItShows(Residual):
    """Its state is a view of eight streams."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return torch.cat([state + y, *[torch.zeros_like(y)] * 7], -1)[..., : y.size(-1)]


@caught_by("in_flight_bytes")
class DeclaresTheWorst(Residual):
    """Declares a history that it does not keep."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return (3 + self.shape.num_steps) * super().in_flight_bytes(dtype)


@caught_by("parameters")
class RegistersBuffer(Residual):
    """Keeps a constant in a buffer, which nothing fills after the meta device."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("damping", torch.tensor(0.5), persistent=False)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.damping * y


@caught_by("parameters")
class HidesParameters(Scaled):
    """Its card says that there are none."""

    card = Residual.card


@caught_by("parameters")
class MiscountsParameters(Scaled):
    """Its card knows of one weight a layer."""

    card = replace(Scaled.card, parameters="L")


@caught_by("in_flight_bytes")
class BelittlesItsHistory(DenseFormer):
    """Declares what it holds, and tells its readers another figure."""

    card = replace(DenseFormer.card, in_flight_bytes="D·e")


@caught_by("in_flight_bytes")
class BoastsOfItsHistory(Residual):
    """Its card tells of streams that it does not hold."""

    card = replace(Residual.card, in_flight_bytes="(L+2)·D·e")


@caught_by("flops")
class DeclaresTooFewFlops(DenseFormer):
    """By a factor of ten."""

    def flops_per_token(self) -> int:
        return super().flops_per_token() // 10


@caught_by("flops")
class DeclaresTooManyFlops(DenseFormer):
    """By a factor of ten."""

    def flops_per_token(self) -> int:
        return 10 * super().flops_per_token()


@caught_by("sources")
class NamesLaterSources(DenseFormer):
    """Off by one."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        sites = self.shape.sites()
        return tuple(sites[min(len(sites) - 1, sites.index(s) + 2)] if s else None for s in super().sources(site))


@caught_by("card")
class LeavesAnOptionUndescribed(Residual):
    """Nobody can tell what it does."""

    class Config(MixerConfig):
        """Options."""

        strength: float = Field(1.0, ge=0, le=1)


@caught_by("card")
class TakesUpABanana(Residual):
    """A formula of nothing known."""

    card = replace(Residual.card, in_flight_bytes="banana")


@caught_by("card")
class WritesNoEquation(Residual):
    """The card's equation is empty."""

    card = replace(Residual.card, equation=" ")
