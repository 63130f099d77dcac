"""The mixers of this project's own distribution: what else is installed here is no business of its tests."""

from __future__ import annotations

from typing import Any

from mixerzoo import MixerChoice, load_registry

#: Options without which a mixer says nothing.
_REQUIRED: dict[str, dict[str, Any]] = {"compose": {"of": [{"name": "denseformer"}, {"name": "depth_attention"}]}}

#: In the order of their names.
OWN = sorted(name for name, entry in load_registry().entries.items() if entry.distribution == "mixerzoo")
#: The mixer section of a recipe, as short as it can be.
CHOICES: dict[str, dict[str, Any]] = {name: {"name": name, **_REQUIRED.get(name, {})} for name in OWN}


def neutral_choices(num_steps: int) -> dict[str, tuple[MixerChoice, float]]:
    """Mixers of this project at a setting at which they are the plain residual stream, and how exactly they are."""
    found = {}
    for name in OWN:
        for neutral in load_registry().get(name).mixer.card.neutral_settings:
            if neutral.num_steps in (None, num_steps):
                choice = MixerChoice.model_validate({"name": name, **neutral.options})
                found[name] = (choice, 1e-3 if neutral.up_to_norm_eps else 1e-10)
    return found
