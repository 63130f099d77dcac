"""Chapter 5: where the card says that the decoder is a plain residual one, it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import ValidationError

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer, Neutral, load_registry
from mixerzoo.model import Decoder
from mixerzoo.testing.case import Case, perturb
from mixerzoo.testing.check import assert_close, assert_same, clause
from mixerzoo.testing.ordinary import ORDINARY


@clause("5.1", large=("rows", "long", "deep"))
@torch.no_grad()
def neutral_settings(mixer: type[Mixer], case: Case) -> None:
    """At each neutral setting of the card the logits equal the residual decoder's.

    Sees: float64; without gradients.
    Blind: settings that the card does not name, and gradients.
    """
    for setting in mixer.card.neutral_settings:
        ours, there = _at(mixer, case, setting)
        residual = load_registry().get("residual").mixer
        plain = replace(there, options={}).decoder(residual, perturbed=False)
        perturb(ours, case.seed, leaves_mixer=True)
        perturb(plain, case.seed, leaves_mixer=True)
        tokens = case.tokens()
        what = _words_of(setting)
        if setting.up_to_norm_eps:
            assert_close(ours(tokens), plain(tokens), what, tolerance=1e-8)
        else:
            assert_same(ours(tokens), plain(tokens), what)


def _at(mixer: type[Mixer], case: Case, setting: Neutral) -> tuple[Decoder, Case]:
    """The decoder of a case at a neutral setting, and the case that it is.

    Where the other options of the case are refused beside it, they are at their defaults; where it is refused then too,
    the decoder is an ordinary one, or one of 20 layers.
    """
    # Outside: what is refused without the setting says nothing of it.
    mixer.Config.model_validate(dict(case.options))
    changes: dict[str, Any] = {} if setting.num_steps is None else {"num_layers": setting.num_steps, "loop": {}}
    if setting.up_to_norm_eps:
        changes["norm_eps"] = 1e-14
    needed = {name: case.options[name] for name, info in mixer.Config.model_fields.items() if info.is_required()}
    deep = tuple({**model, "num_layers": 20} for model in ORDINARY)
    elsewhere = [(model, needed) for model in (case.model, *ORDINARY, *deep)]
    refusal: Exception | None = None
    for model, others in ((case.model, case.options), *elsewhere):
        there = replace(case, model={**model, **changes}, options={**others, **setting.options})
        try:
            return there.decoder(mixer, perturbed=False), there
        except (MixerzooError, ValidationError) as error:
            refusal = error
    raise AssertionError(f"{_words_of(setting)} is refused in every decoder, the last in these words: {refusal}")


def _words_of(setting: Neutral) -> str:
    steps = "" if setting.num_steps is None else f" at {setting.num_steps} step(s)"
    return f"the neutral setting {dict(setting.options)}{steps}"


@clause("5.2")
@torch.no_grad()
def skeleton_untouched(mixer: type[Mixer], case: Case) -> None:
    """With one seed, every weight outside the mixer starts as in the residual decoder.

    Sees: float64; initial values.
    Blind: weights that are changed after the start.
    """
    residual = load_registry().get("residual").mixer
    ours = dict(case.decoder(mixer, perturbed=False).named_parameters())
    plain = dict(replace(case, options={}).decoder(residual, perturbed=False).named_parameters())
    for name, parameter in ours.items():
        if name in plain:
            assert_same(parameter, plain[name], f"the initial {name}")
        assert parameter.isfinite().all(), f"the initial {name} is not finite"
