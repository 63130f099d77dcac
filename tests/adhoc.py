"""Mixers for the tests: they use the parts of the skeleton that no registered mixer uses."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from mixerzoo import AttentionInputs, Context, Mixer, MixerConfig, Plan, Site
from mixerzoo_plugins.residual import Residual


class PlannedConfig(MixerConfig):
    """A plan, given whole; see `Plan`."""

    k_slot: tuple[int, ...]
    v_slot: tuple[int, ...]
    windows: tuple[int | None, ...]


class Planned(Residual):
    """The residual stream with any slots and windows."""

    name = "planned"
    Config = PlannedConfig

    def plan(self) -> Plan:
        assert isinstance(self.config, PlannedConfig)
        return Plan(self.shape.order, self.config.k_slot, self.config.v_slot, self.config.windows)


class SeparateConfig(MixerConfig):
    """How far the inputs of k and v go back to the embedding."""

    back: float = Field(0.5)


class SeparateState(NamedTuple):
    """The stream and the embedding [B, T, D]."""

    x: Tensor
    embedding: Tensor


class Separate(Mixer):
    """Queries read the stream x, values the embedding e, keys x + back · e."""

    name = "separate"
    Config = SeparateConfig
    card = Residual.card

    def start(self, x: Tensor, context: Context) -> SeparateState:
        return SeparateState(x, x)

    def read(self, state: SeparateState, site: Site) -> Tensor | AttentionInputs:
        assert isinstance(self.config, SeparateConfig)
        if site.branch == "mlp":
            return state.x
        return AttentionInputs(q=state.x, k=state.x + self.config.back * state.embedding, v=state.embedding)

    def write(self, state: SeparateState, site: Site, y: Tensor) -> SeparateState:
        return SeparateState(state.x + y, state.embedding)

    def finish(self, state: SeparateState) -> Tensor:
        return state.x


MIXERS: dict[str, type[Mixer]] = {mixer.name: mixer for mixer in (Planned, Separate)}
