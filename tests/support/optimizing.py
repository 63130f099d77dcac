"""Steps of every optimiser, and runs of few steps."""

from __future__ import annotations

from pathlib import Path

import torch

import mixerzoo
from mixerzoo.model import Decoder
from mixerzoo.recipe import build
from mixerzoo.training.optimizers import make_optimizer
from reporters import stopped
from runs import tiny_recipe

SHORT = ("train.steps=4", "train.checkpoint_interval=2", "eval.interval=2", "train.log_interval=1")
OPTIMIZERS = ["adamw", "muon", "adafactor", "lion"]


def interrupted(directory: Path, *overrides: str) -> Path:
    return stopped(directory, 3, *SHORT, *overrides, save=True)


def stepped(*overrides: str, steps: int = 3) -> tuple[Decoder, torch.optim.Optimizer, list[float]]:
    """A decoder after steps on one batch, its optimiser, and the losses."""
    recipe = tiny_recipe("train.learning_rate=0.01", *overrides)
    decoder = build(recipe, dtype=mixerzoo.recipe.weights_dtype(recipe.train.precision))
    optimizer, losses = make_optimizer(recipe, decoder), []
    tokens = torch.randint(0, 257, (4, 17), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return decoder, optimizer, losses
