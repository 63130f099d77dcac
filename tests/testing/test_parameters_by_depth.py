"""A parameter that shallow decoders do not use: clause 6.1 lets a mixer say so, and no more than that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mixerzoo import DecoderShape, MixerConfig, ParameterRole, Site
from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo_plugins.residual import Residual


class LaterGain(Residual):
    """One gain for the outputs of all steps but the first."""

    name = "later_gain"
    card = replace(Residual.card, parameters="1", neutral="", neutral_settings=())
    said = 2

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gain = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.ones_(self.gain)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"gain": ParameterRole(from_depth=self.said)}

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (y if site.step == 0 else self.gain * y)


def test_a_mixer_that_says_from_which_depth_on_is_not_blamed() -> None:
    result = run_check(CHECKS["every_parameter_learns"], LaterGain)
    assert result.ok, failure_text(result)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            1,
            "model.mixer.gain gets no gradient in a decoder of 1 steps; where that is right, its ParameterRole says so",
        ),
        (3, "model.mixer.gain has a gradient in a decoder of 2 steps, and its role says from_depth=3"),
        (67, "model.mixer.gain is used from 67 steps on, and the kit sees no more than 66"),
    ],
)
def test_what_it_says_must_be_so(said: int, words: str) -> None:
    result = run_check(CHECKS["every_parameter_learns"], type("Wrong", (LaterGain,), {"said": said}))
    assert result.outcome == "failed"
    assert result.message.startswith(words), result.message


class Frozen(LaterGain):
    """Its gain is no parameter that learns."""

    name = "frozen"

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gain.requires_grad_(False)


def test_a_frozen_parameter_is_called_frozen() -> None:
    result = run_check(CHECKS["every_parameter_learns"], Frozen)
    assert result.message == "model.mixer.gain is frozen: requires_grad is False"
