"""The learning rates of a run before it is run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import get_scheduler

from mixerzoo.recipe import Recipe
from mixerzoo.training.trainer import training_arguments


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The learning rate of each of the first steps of a run.

    Args:
        recipe: of the run.
        steps: how many.
    """
    arguments = training_arguments(recipe, Path())
    assert not isinstance(arguments.lr_scheduler_kwargs, str)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.train.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(recipe.train.steps),
        num_training_steps=recipe.train.steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    factor = schedule.lr_lambdas[0]
    return [recipe.train.learning_rate * factor(step) for step in range(steps)]
