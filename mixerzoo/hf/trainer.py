"""A thin subclass of the Hugging Face Trainer that closes its known traps.

- A checkpoint appears in one rename, so one that was cut off is never picked up.
- The order of the data is a function of the seed alone, and every step sees the same number of sequences.
- Weight decay goes by a parameter's role, not by its name.
- A loss that is not finite stops the run instead of being filtered out of the log.
- Without CUDA every process says so (``use_cpu``), or two of them would train apart in silence.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mixerzoo.checkpoints import load_checkpoint, save_checkpoint
from mixerzoo.decay import decay_parameter_names
from mixerzoo.decoder import Decoder
from mixerzoo.errors import RunError
from mixerzoo.recipe import Recipe
from mixerzoo.runs import INCOMPLETE, complete_checkpoints


class NextTokenLoss(nn.Module):
    """A decoder as Trainer wants it: inputs and labels in, mean loss out.

    Args:
        decoder: the model.
    """

    #: The loss is a mean over equally many tokens per batch, which Trainer divides by the accumulation.
    accepts_loss_kwargs = False

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of labels [B, T] (already shifted) given input_ids [B, T]."""
        logits = self.decoder(input_ids)
        return {"loss": F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())}


class SeededOrder(Sampler[int]):
    """``count`` indices: one shuffle of the data after the other, each a function of seed and round.

    Args:
        size: of the dataset.
        count: indices in all.
        seed: of the shuffles.
    """

    def __init__(self, size: int, count: int, seed: int) -> None:
        self._size, self._count, self._seed = size, count, seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        given, number = 0, 0
        while given < self._count:
            generator = torch.Generator().manual_seed((self._seed << 20) + number)
            yield from torch.randperm(self._size, generator=generator)[: self._count - given].tolist()
            given += self._size
            number += 1


class MixerZooTrainer(Trainer):
    """Trainer over a `NextTokenLoss`, run as a recipe's ``train`` section says.

    Args:
        decoder: the model, with its initial weights.
        recipe: the experiment.
        dataset: items ``{"input_ids": [T], "labels": [T]}``.
        directory: where checkpoints go.
        callbacks: Trainer callbacks.
    """

    def __init__(
        self,
        decoder: Decoder,
        recipe: Recipe,
        dataset: Dataset[dict[str, Tensor]],
        directory: Path,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self._saving_into: Path | None = None
        decoder.model.activation_checkpointing = recipe.train.activation_checkpointing
        super().__init__(
            model=NextTokenLoss(decoder),
            args=training_arguments(recipe, directory),
            train_dataset=dataset,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @property
    def decoder(self) -> Decoder:
        """The model being trained."""
        assert isinstance(self.model, NextTokenLoss)
        return self.model.decoder

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The skeleton's matrices, and what the mixer says of its own."""
        return decay_parameter_names(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, Sized)
        train = self.recipe.train
        count = train.steps * train.accumulation * train.batch_size * self.args.world_size
        return SeededOrder(len(dataset), count, self.recipe.seed)

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._saving_into or self.directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        name = f"checkpoint-{self.state.global_step}"
        self._saving_into = self.directory / INCOMPLETE
        if self.args.should_save:
            shutil.rmtree(self._saving_into, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (self._saving_into / name).rename(self.directory / name)
            self._saving_into.rmdir()
            for _, old in complete_checkpoints(self.directory)[: -self.recipe.train.keep_checkpoints]:
                shutil.rmtree(old)
        self._saving_into = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            save_checkpoint(self.decoder, output_dir or self.directory)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        except RuntimeError as error:
            # torch.save has no error of its own for a disk that is full.
            if "inline_container" not in str(error):
                raise
            raise RunError(f"{output_dir}: the optimizer's state cannot be written; is the disk full?") from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = load_checkpoint(resume_from_checkpoint)
        self.decoder.load_state_dict(saved.state_dict())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop a run whose loss is no longer a number.

        Raises:
            RunError: the loss is not finite.
        """
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RunError(
                f"the loss became {logs['loss']} by step {self.state.global_step}; lower train.learning_rate, "
                "lengthen train.warmup_fraction, or clip with train.max_grad_norm"
            )


def training_arguments(recipe: Recipe, directory: Path) -> TrainingArguments:
    """Trainer's arguments for a recipe."""
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
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=schedule_options,
        warmup_steps=warmup,
        optim="adamw_torch_fused",
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        torch_compile=train.compile,
        seed=recipe.seed,
        logging_steps=train.log_interval,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=train.resolved_checkpoint_interval,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and torch.distributed.is_torchelastic_launched() else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
