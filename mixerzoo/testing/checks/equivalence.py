"""Chapter 5: where the card says that the decoder is a plain residual one, it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mixerzoo.mixer import Mixer, load_registry
from mixerzoo.testing.case import Case, perturb
from mixerzoo.testing.check import assert_close, assert_same, clause


@clause("5.1", large=("rows", "long", "deep"))
@torch.no_grad()
def neutral_settings(mixer: type[Mixer], case: Case) -> None:
    """At each neutral setting of the card the logits equal the residual decoder's.

    Sees: float64; without gradients.
    Blind: settings that the card does not name, and gradients.
    """
    for setting in mixer.card.neutral_settings:
        changes: dict[str, Any] = {} if setting.num_steps is None else {"num_layers": setting.num_steps, "loop": {}}
        if setting.up_to_norm_eps:
            changes["norm_eps"] = 1e-14
        ours = replace(case, options={**case.options, **setting.options}).decoder(mixer, perturbed=False, **changes)
        residual = load_registry().get("residual").mixer
        plain = replace(case, options={}).decoder(residual, perturbed=False, **changes)
        perturb(ours, case.seed, leaves_mixer=True)
        perturb(plain, case.seed, leaves_mixer=True)
        tokens = case.tokens()
        what = f"the neutral setting {dict(setting.options)}" + (f" at {setting.num_steps} step(s)" if changes else "")
        if setting.up_to_norm_eps:
            assert_close(ours(tokens), plain(tokens), what, tolerance=1e-8)
        else:
            assert_same(ours(tokens), plain(tokens), what)


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
