"""Clause 5.1 tries each neutral setting where the mixer takes it, and somewhere it must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import Field
from torch import Tensor

from mixerzoo import DecoderShape, MixerConfig, Neutral, Site
from mixerzoo.errors import MixerError
from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo_plugins.residual import Residual
from right_options import HardGates

CHECK = CHECKS["neutral_settings"]


class Weakens(MixerConfig):
    """Options."""

    weakened: bool = Field(True, description="Halve what is added.")


class Halved(Residual):
    """Halves outputs; where it does not, it takes decoders of an even number of steps, more than any that is drawn."""

    name = "halved"
    Config = Weakens
    card = replace(Residual.card, neutral="weakened: false", neutral_settings=(Neutral(options={"weakened": False}),))
    fewest = 16

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if not config.weakened and (shape.num_steps % 2 or shape.num_steps < self.fewest):
            raise MixerError(f"{shape.num_steps} steps are odd or too few")

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (y / 2 if self.config.weakened else y)  # type: ignore[attr-defined]


class StillHalved(Halved):
    """Halves them all the same."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y / 2


class NeverNeutral(Halved):
    """Takes its setting nowhere."""

    fewest = 1000


class Fails(Halved):
    """Fails at its setting, and not in words."""

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if not config.weakened:
            raise ZeroDivisionError("an example")


@pytest.mark.parametrize("mixer", [HardGates, Halved])
def test_options_and_sizes_that_a_setting_does_not_go_with_are_left_out(mixer: Any) -> None:
    result = run_check(CHECK, mixer)
    assert result.ok, failure_text(result)


@pytest.mark.parametrize(
    ("mixer", "words"),
    [
        (StillHalved, "the neutral setting {'weakened': False}: not the same bits"),
        (
            NeverNeutral,
            "the neutral setting {'weakened': False} is refused in every decoder, the last in these words: 20 steps",
        ),
        (Fails, "ZeroDivisionError: an example"),
    ],
)
def test_a_setting_that_is_none_or_is_refused_everywhere_is_blamed(mixer: Any, words: str) -> None:
    result = run_check(CHECK, mixer, shrink=False)
    assert result.outcome == "failed"
    assert result.message.startswith(words), result.message
