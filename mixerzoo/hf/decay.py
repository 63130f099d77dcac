"""Weight decay by role under the Hugging Face Trainer, whose own rule goes by names and kinds of layers.

That rule knows neither mixers nor a way for a model to say what it is, so importing `mixerzoo.hf` puts ours in front
of it: `Trainer.get_decay_parameter_names` of a model with a mixer gives what `mixerzoo.decay_parameter_names` does, and
of every other model what it always did. A subclass with a rule of its own keeps it.
"""

from __future__ import annotations

import functools

from torch import nn
from transformers import Trainer

from mixerzoo.mixer import Mixer
from mixerzoo.model import decay_parameter_names


def teach_trainer() -> None:
    """Let `Trainer` ask the mixer which of its parameters decay. A second call changes nothing."""
    original = Trainer.get_decay_parameter_names
    if getattr(original, "asks_mixers", False):
        return

    @functools.wraps(original)
    def get_decay_parameter_names(self: Trainer, model: nn.Module) -> list[str]:
        if any(isinstance(module, Mixer) for module in model.modules()):
            return decay_parameter_names(model)
        return original(self, model)

    get_decay_parameter_names.asks_mixers = True  # type: ignore[attr-defined]
    Trainer.get_decay_parameter_names = get_decay_parameter_names  # type: ignore[method-assign]
