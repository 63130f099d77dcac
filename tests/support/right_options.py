"""More mixers that are right and unusual, with options: the conformance kit must not blame them either."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mixerzoo import Context, DecoderShape, Mixer, MixerConfig, Neutral, Plan, Site
from right import Stream


class Gates(MixerConfig):
    """Options."""

    gated: bool = Field(True, description="Whether outputs go through gates.")
    floor: float = Field(0.0, ge=0, le=1, description="What a gate that is shut lets through.")

    @model_validator(mode="after")
    def _floor_is_of_a_gate(self) -> Gates:
        if not self.gated:
            self.refuse_idle("gated false", "set gated to true", "floor")
        return self


class HardGates(Mixer[Gates]):
    """Every output is scaled by floor + relu(w·norm(x)) of the stream x: a gate may be shut for a whole text."""

    name = "hard_gates"
    card = replace(
        Stream.card,
        parameters="2·L·D (gated: false: 0)",
        neutral="gated: false, bit for bit",
        neutral_settings=(Neutral(options={"gated": False}),),
    )

    def __init__(self, config: Gates, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        sites = shape.sites() if config.gated else ()
        self.gates = nn.ParameterList(torch.empty(shape.hidden_size) for _ in sites)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for gate in self.gates:
            nn.init.normal_(gate, std=std, generator=generator)

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if not self.config.gated:
            return state + y
        x, weight = (
            part.to(torch.promote_types(part.dtype, torch.float32)) for part in (state, self.gates[site.number])
        )
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.shape.norm_eps)
        gate = self.config.floor + F.relu((normed * weight).sum(-1, keepdim=True))
        return state + gate.to(y.dtype) * y

    def finish(self, state: Tensor) -> Tensor:
        return state

    def flops_per_token(self) -> int:
        return len(self.gates) * (6 * self.shape.hidden_size + 4)


class Groups(MixerConfig):
    """Options."""

    group: int | None = Field(
        None, ge=2, description="Steps that attend to the keys and values of the first of them; none: each to its own."
    )


class Grouped(Stream):
    """Groups of steps share keys and values, or none do: the option of its formula may be no number."""

    name = "grouped"
    Config = Groups
    card = replace(
        Stream.card,
        family="cache",
        kv_bytes="2·⌈L/group⌉·G·d·e",
        neutral="group: null, bit for bit",
        neutral_settings=(Neutral(options={"group": None}),),
    )

    def plan(self) -> Plan:
        size = self.config.group or 1  # type: ignore[attr-defined]
        first = tuple(step - step % size for step in range(self.shape.num_steps))
        return Plan.borrowing(self.shape.order, first, first)


#: Right, each in a way of its own.
RIGHT_OPTIONS: tuple[type[Mixer], ...] = (HardGates, Grouped)
