"""Right mixers that wrong ones are made from, and the register of the wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    Mixer,
    MixerConfig,
    ParameterRole,
    Plan,
    Site,
    Tail,
)
from mixerzoo.testing import Reference
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.residual import Residual

#: Wrong mixer → name of the check that must catch it.
WRONG: dict[type[Mixer], str] = {}
#: Wrong mixer → the reference that it is held against, where the check needs one.
REFERENCES: dict[type[Mixer], Reference] = {}


def caught_by(check: str, reference: Reference | None = None, *, named: bool = True) -> Any:
    """Enter a class in `WRONG`.

    Args:
        check: that must catch it.
        reference: what the check needs.
        named: name the mixer after the class; else it passes for the right one.
    """

    def enter(mixer: type[Mixer]) -> type[Mixer]:
        if named:
            mixer.name = "".join("_" + c.lower() if c.isupper() else c for c in mixer.__name__).strip("_")
        WRONG[mixer] = check
        if reference is not None:
            REFERENCES[mixer] = reference
        return mixer

    return enter


def shifted(x: Tensor) -> Tensor:
    """Each token's vector [B, T, D] moved to the next token of the call; the first gets zeros."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


class Stream(Residual):
    """Correct: the plain stream, of a card that does not promise to be neutral, for what derives from it."""

    name = "stream"
    card = replace(Residual.card, neutral_settings=(), neutral="")


class Scaled(Residual):
    """Correct: each sublayer's output is added with a learned weight."""

    name = "scaled"
    card = replace(Residual.card, parameters="2·L", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.empty(2 * shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.scale, 1.0, std, generator=generator)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.scale[2 * site.step + (site.branch == "mlp")] * y


class Strided(Scaled):
    """Correct: outputs count twice at every stride-th step."""

    name = "strided"

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, description="Steps from one that counts twice to the next.")

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        stride: int = self.config.stride  # type: ignore[attr-defined]
        return super().write(state, site, y if site.step % stride else 2 * y)

    def flops_per_token(self) -> int:
        return 2 * super().flops_per_token() + 4 * self.shape.num_steps * self.shape.hidden_size


class Projected(Residual):
    """Correct: the stream goes through a matrix that starts at random and decays."""

    name = "projected"
    card = replace(Residual.card, parameters="D²", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.matrix = nn.Parameter(torch.empty(shape.hidden_size, shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.matrix, std=std, generator=generator)

    def finish(self, state: Tensor) -> Tensor:
        return state + state @ self.matrix

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size**2

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"matrix": ParameterRole(decay=True)}


class Remembering(Residual):
    """Correct: half of the embedding before is added at the embedding, through a tail."""

    name = "remembering"
    card = replace(Residual.card, neutral_settings=(), neutral="")

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(1, self.shape.hidden_size))

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + context.earlier[0] / 2

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size


class Fusing(Residual):
    """Correct: above the first step all attend to half of the first step's keys and values and half of the last's."""

    name = "fusing"
    card = replace(Residual.card, neutral_settings=(), neutral="")

    def plan(self) -> Plan:
        plan = super().plan()
        reads = tuple((0, step) if step else (0,) for step in range(self.shape.num_steps))
        return replace(plan, k_reads=reads, v_reads=reads)

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return (keys[0] + keys[1]) / 2, (values[0] + values[1]) / 2

    def flops_per_token(self) -> int:
        return 4 * self.shape.num_kv_heads * self.shape.head_dim * (self.shape.num_steps - 1)


CORRECT: tuple[type[Mixer], ...] = (
    Residual,
    DenseFormer,
    DepthAttention,
    Scaled,
    Strided,
    Projected,
    Remembering,
    Fusing,
)
