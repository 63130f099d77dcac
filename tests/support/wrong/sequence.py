"""What goes wrong along the sequence."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mixerzoo import (
    Context,
    MixerConfig,
    Site,
)
from mixerzoo_plugins.residual import Residual
from wrong.basis import caught_by, shifted


@caught_by("causality")
class LeaksOneTokenAhead(Residual):
    """Adds the next token's output."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y + 0.1 * torch.cat([y[:, 1:], y[:, -1:]], dim=1)


@caught_by("causality")
class LeaksThroughMean(Residual):
    """Centres over time."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state - state.mean(1, keepdim=True)


@caught_by("causality")
class LeaksInEvaluation(LeaksOneTokenAhead):
    """A right one in training, and nobody generates while training."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y if self.training else super().write(state, site, y)


@caught_by("causality")
class LeaksWithinBlocks(Residual):
    """Centres over whole blocks of sixteen tokens, which short sequences do not fill."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        blocks = [part - part.mean(1, keepdim=True) if part.size(1) == 16 else part for part in y.split(16, 1)]
        return state + torch.cat(blocks, 1)


class TwoSwitches(MixerConfig):
    """Options that do nothing, whose number changes every draw of the kit."""

    first: bool = Field(False, description="Nothing.")
    second: bool = Field(False, description="Nothing.")


class FourSwitches(TwoSwitches):
    third: bool = Field(False, description="Nothing.")
    fourth: int = Field(0, ge=0, le=5, description="Nothing.")


@caught_by("causality")
class LeaksWithinBlocksWithTwoSwitches(LeaksWithinBlocks):
    """The same, with other draws."""

    Config = TwoSwitches


@caught_by("causality")
class LeaksWithinBlocksWithFourSwitches(LeaksWithinBlocks):
    """The same, with other draws."""

    Config = FourSwitches


@caught_by("cached_decoding")
class CountsBlocks(Residual):
    """Scales from the tenth token of a call on, as a buffer of ten tokens would."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + torch.cat([y[:, :10], 2 * y[:, 10:]], 1)


class Named(MixerConfig):
    """An option with many values."""

    kind: Literal["a", "b", "c", "d", "e", "f", "g"] = Field("d", description="Which.")


@caught_by("causality")
class LeaksWithOneOption(Residual):
    """Right but for one of seven values of an option."""

    Config = Named

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (shifted(y.flip(1)).flip(1) if self.config.kind == "g" else y)


@caught_by("causality")
class LeaksInBf16(LeaksOneTokenAhead):
    """A fast path for half precision, which nobody compares with the other."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return super().write(state, site, y) if state.dtype == torch.bfloat16 else state + y


@caught_by("causality")
class LeaksUnderAutocast(LeaksOneTokenAhead):
    """A fast path for mixed precision."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return super().write(state, site, y) if torch.is_autocast_enabled("cpu") else state + y


@caught_by("token_local_mixing")
class MeansOverThePast(Residual):
    """A running mean: causal, but a token's past is attention's to look at."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        counts = torch.arange(1, state.size(1) + 1, device=state.device, dtype=state.dtype)
        return state + state.cumsum(1) / counts[:, None]


@caught_by("rows_independent")
class MixesRows(Residual):
    """Centres over the batch."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y - 0.5 * y.mean(0, keepdim=True)


@caught_by("rows_independent")
class NumbersRows(Residual):
    """Weights rows by their place in the batch."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        rows = torch.arange(x.size(0), device=x.device, dtype=x.dtype)
        return x * (1 + 0.1 * rows)[:, None, None]


@caught_by("left_padding")
class ReadsFirstToken(Residual):
    """Takes the first column for the first token of the text."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 0.5 * x[:, :1]


@caught_by("packed_documents")
class ShiftsTokens(Residual):
    """Each token reads the one before it, across the border of documents."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 0.5 * shifted(x)
