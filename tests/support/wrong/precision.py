"""Precisions, devices and sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo import (
    AttentionInputs,
    Context,
    DecoderShape,
    MixerConfig,
    Site,
)
from mixerzoo.errors import MixerError
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.residual import Residual
from wrong.basis import caught_by
from wrong.sequence import Named


@caught_by("precisions")
class SumsInSinglePrecision(Residual):
    """Adds in float32, also where everything else is float64."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return (state.float() + y.float()).to(y.dtype)


@caught_by("precisions")
class ReturnsWrongDtype(Residual):
    """Keeps the stream in float32 and never casts back."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))


@caught_by("precisions")
class CancelsInBf16(Residual):
    """Carries a large offset along, in which bf16 loses the stream."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 1000

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state - 1000

    def finish(self, state: Tensor) -> Tensor:
        return state - 1000


@caught_by("wide_norms")
class NormsInBf16(Residual):
    """Norms in the dtype of the stream."""

    def finish(self, state: Tensor) -> Tensor:
        return state * torch.rsqrt(state.square().mean(-1, keepdim=True) + self.shape.norm_eps)


@caught_by("wide_norms")
class TakesRootsInBf16(Residual):
    """Norms with a power in place of a root."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state * (state.square().sum(-1, keepdim=True) / state.size(-1) + 1e-6) ** -0.5


@caught_by("wide_norms")
class WeighsInBf16(DenseFormer):
    """A softmax in the dtype of the weights."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.zeros_(weight)

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        if site.step + 1 in self.averaged:
            self.weights[str(site.step + 1)].softmax(-1)
        return super().write(state, site, y)


@caught_by("large_activations")
class Overflows(Residual):
    """A softmax without subtracting the maximum."""

    def finish(self, state: Tensor) -> Tensor:
        weights = state.exp()
        return state * weights / weights.sum(-1, keepdim=True)


@caught_by("meta_device")
class BuildsOnTheCpu(Residual):
    """A constant on a fixed device."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y * torch.full((y.size(-1),), 0.5, device="cpu", dtype=y.dtype)


@caught_by("extremes")
class NeedsGroupsOfFour(Residual):
    """Normalises groups of four channels, without refusing a size that has none."""

    def finish(self, state: Tensor) -> Tensor:
        groups = state.unflatten(-1, (-1, 4))
        return (groups / (1 + groups.norm(dim=-1, keepdim=True))).flatten(-2)


@caught_by("extremes")
class KnowsTwelveSteps(Residual):
    """A table of a fixed number of depths, which none of the usual sizes exceeds."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        decay = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
        return state + decay[site.layer] * y


@caught_by("extremes")
class FailsToBuild(Residual):
    """Counts on a second layer, and says nothing where there is none."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.second = shape.order[1]


@caught_by("ordinary_decoder")
class RefusesDepth(Residual):
    """Serves one layer, where there is little to get wrong, and refuses the rest in words."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.num_layers > 1:
            raise MixerError("one layer is enough for everybody")


@caught_by("causality")
class DividesByDepth(Residual):
    """Fails in its constructor, at every size: a case can be named all the same."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weight = 1 / (shape.num_layers - shape.num_layers)


@caught_by("compiles")
class BreaksGraphsByDefault(Residual):
    """Compiles with every value of an option but the default."""

    Config = Named

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if self.config.kind == "d" and site.step:
            torch._dynamo.graph_break()
        return state + y


@caught_by("compiles")
class BranchesOnData(Residual):
    """Skips outputs that are small."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if y.abs().mean() > 0.01:
            return state + y
        return state


@caught_by("causality")
class SplitsInputsOfTheMlp(Residual):
    """Separate inputs at a site that has one."""

    def read(self, state: Tensor, site: Site) -> Tensor | AttentionInputs:  # type: ignore[override]
        return AttentionInputs(state, state, state)
