"""The exponential mean of the weights over the steps of a run (``train.ema``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mixerzoo.errors import RunError
from mixerzoo.model import Decoder

#: In a checkpoint: the mean, beside the weights that training goes on with.
MEAN_FILE = "ema.pt"


class MeanWeights(TrainerCallback):
    """Keeps the mean, in float32 whatever the weights are.

    After step n the decay is ``min(decay, (1 + n) / (10 + n))``, so that a short run's mean is not that of its
    initial weights.

    Args:
        decoder: whose weights they are, on the device where it trains.
        decay: share of the mean that a step leaves.
    """

    def __init__(self, decoder: Decoder, decay: float) -> None:
        self._decoder, self._decay = decoder, decay
        self._means: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._means:
            self._means = {name: each.detach().float().clone() for name, each in self._decoder.named_parameters()}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._decoder.named_parameters():
            self._means[name].lerp_(parameter.float(), share)

    @torch.no_grad()
    def put_in(self) -> None:
        """Give the decoder the mean for good."""
        for name, parameter in self._decoder.named_parameters():
            parameter.copy_(self._means[name])

    @contextmanager
    def within(self) -> Iterator[None]:
        """A block in which the decoder has the mean."""
        kept = {name: parameter.detach().clone() for name, parameter in self._decoder.named_parameters()}
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._decoder.named_parameters():
                    parameter.copy_(kept[name])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self._means

    def load_state(self, state: Any, path: Path) -> None:
        """Go on from what a checkpoint kept.

        Args:
            state: from `state`.
            path: for messages.

        Raises:
            RunError: it is not the mean of this decoder's weights.
        """
        parameters = dict(self._decoder.named_parameters())
        if not isinstance(state, dict) or state.keys() != parameters.keys():
            raise RunError(f"{path}: holds no mean of this decoder's weights; remove the checkpoint")
        for name, parameter in parameters.items():
            mean = state[name]
            if not isinstance(mean, Tensor) or mean.shape != parameter.shape or mean.dtype != torch.float32:
                raise RunError(f"{path}: the mean of {name} is none; remove the checkpoint")
        self._means = {name: state[name].to(parameter.device) for name, parameter in parameters.items()}
