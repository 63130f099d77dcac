"""What a recipe says in the words of the Hugging Face Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from mixerzoo.recipe import Recipe, autocast_dtype
from mixerzoo.training.processes import launched


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


def training_arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    """Trainer's arguments for a recipe, whose process trains on one device."""
    train = recipe.train
    warmup = round(train.steps * train.warmup_fraction)
    schedules: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": train.final_learning_rate_fraction}),
        "constant": ("constant_with_warmup", {}),
        "wsd": (
            "warmup_stable_decay",
            {
                "num_decay_steps": max(1, round(train.steps * train.decay_fraction)),
                "min_lr_ratio": train.final_learning_rate_fraction,
                "decay_type": "linear",
            },
        ),
    }
    schedule, schedule_options = schedules[train.schedule]
    cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=schedule_options,
        warmup_steps=warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=autocast_dtype(train.precision) == torch.bfloat16,
        fp16=autocast_dtype(train.precision) == torch.float16,
        seed=recipe.seed,
        logging_steps=train.log_interval,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.resolved_checkpoint_interval,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and launched() else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not cpu,
        dataloader_num_workers=recipe.data.loader_workers,
        remove_unused_columns=False,
        disable_tqdm=True,
        # Or every process but the first would warn again of what is no error.
        log_level_replica="passive",
        report_to="none",
    )
    if arguments.n_gpu > 1:
        # Trainer would read a batch for each of them.
        arguments._n_gpu = 1
    return arguments
