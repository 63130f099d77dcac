"""Clauses 4.10 and 6.6 on gates that may be shut and parameters that have an edge."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo import AttentionCall, Context, DecoderShape, Mixer, MixerConfig, MixingWeights, Site
from mixerzoo.testing import CHECKS, run_check
from mixerzoo_plugins.residual import Residual

_CARD = replace(Residual.card, neutral="", neutral_settings=())


class Held(NamedTuple):
    x: Tensor
    outputs: tuple[Tensor, ...]


class HardGates(Mixer):
    """Every output is read again through a gate of its own, which is shut for half of all weights."""

    name, card = "hard_gates", _CARD

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gates = nn.Parameter(torch.empty(2 * shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.gates)

    def start(self, x: Tensor, context: Context) -> Held:
        return Held(x, ())

    def read(self, state: Held, site: Site) -> Tensor:
        return state.x + sum(state.outputs, start=torch.zeros_like(state.x))

    def write(self, state: Held, site: Site, y: Tensor) -> Held:
        return Held(state.x + y, (*state.outputs, self.gates[site.number].relu() * y))

    def finish(self, state: Held) -> Tensor:
        return state.x

    def mixing_weights(self, state: Held, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        if not state.outputs:
            return None
        sites = self.shape.sites()[: site.number]
        weights = torch.ones(1 + len(sites), dtype=state.x.dtype)
        return MixingWeights(weights, (state.x, *state.outputs), (sites[-1], *sites))


class PositiveScale(Residual):
    """A scale that must stay above zero begins just there."""

    name, card = "positive_scale", _CARD

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scale, self.down, self.up = (nn.Parameter(torch.empty(())) for _ in range(3))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.constant_(self.scale, 1e-3)
        nn.init.zeros_(self.up)
        nn.init.ones_(self.down)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.scale.sqrt() * y + self.up * self.down * y


def test_sources_behind_hard_gates_are_not_blamed() -> None:
    result = run_check(CHECKS["source_names"], HardGates)
    assert result.ok, result.message


def test_a_start_near_an_edge_is_not_blamed() -> None:
    result = run_check(CHECKS["every_parameter_starts"], PositiveScale)
    assert result.ok, result.message


def test_gates_that_start_shut_never_open() -> None:
    result = run_check(CHECKS["every_parameter_starts"], HardGates)
    assert "model.mixer.gates got no gradient" in result.message
