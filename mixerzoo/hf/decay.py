"""Weight decay and learning rates by role under the Hugging Face Trainer, whose own rule goes by names and kinds of
layers.

That rule knows neither mixers nor a way for a model to say what it is, so importing `mixerzoo.hf` puts ours in front
of it: `Trainer.get_decay_parameter_names` of a model with a mixer gives what `mixerzoo.decay_parameter_names` does,
and `Trainer.create_optimizer` gives parameters whose learning rate differs groups of their own. Every other model gets
what it always did. A subclass with a rule of its own keeps it.
"""

from __future__ import annotations

import functools

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer

from mixerzoo.mixer import Mixer
from mixerzoo.model import apply_lr_factors, decay_parameter_names


def teach_trainer() -> None:
    """Let `Trainer` ask the mixer which parameters decay, and how fast they learn. A second call changes nothing."""
    original = Trainer.get_decay_parameter_names
    if getattr(original, "asks_mixers", False):
        return

    @functools.wraps(original)
    def get_decay_parameter_names(self: Trainer, model: nn.Module) -> list[str]:
        if _has_mixer(model):
            return decay_parameter_names(model)
        return original(self, model)

    make = Trainer.create_optimizer

    @functools.wraps(make)
    def create_optimizer(self: Trainer, model: nn.Module | None = None) -> Optimizer:
        is_fresh, trained = self.optimizer is None, self.model if model is None else model
        optimizer: Optimizer = make(self, model)
        if is_fresh and trained is not None and _has_mixer(trained):
            apply_lr_factors(optimizer, trained)
        return optimizer

    get_decay_parameter_names.asks_mixers = True  # type: ignore[attr-defined]
    Trainer.get_decay_parameter_names = get_decay_parameter_names  # type: ignore[method-assign]
    Trainer.create_optimizer = create_optimizer  # type: ignore[method-assign]


def _has_mixer(model: nn.Module) -> bool:
    return any(isinstance(module, Mixer) for module in model.modules())
