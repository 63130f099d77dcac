"""Clause 6.1 lets a mixer say from which depth on a parameter is used, and no more; chance it does not blame."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mixerzoo import DecoderShape, MixerConfig, ParameterRole, Site
from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo_plugins.residual import Residual
from right_options import HardGates


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


class ShutGates(HardGates):
    """Its gates are shut whatever they read."""

    name = "shut_gates"

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if not self.config.gated:
            return state + y
        gate = 1 - (state * self.gates[site.number]).sum(-1, keepdim=True).square().neg().relu()
        return state + gate * y


def test_a_gate_that_is_shut_for_all_tokens_of_some_texts_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    check = CHECKS["every_parameter_learns"]
    result = run_check(check, HardGates)
    assert result.ok, failure_text(result)
    monkeypatch.setattr("mixerzoo.testing.checks.gradients.TRIES", 1)
    assert re.match(r"the gradient of model\.mixer\.gates\.\d+ is zero", run_check(check, HardGates).message)


def test_a_gate_that_is_never_open_is_blamed() -> None:
    result = run_check(CHECKS["every_parameter_learns"], ShutGates, shrink=False)
    assert result.outcome == "failed"
    assert result.message.startswith("the gradient of model.mixer.gates.0 is zero"), result.message
