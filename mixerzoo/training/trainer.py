"""A thin subclass of the Hugging Face Trainer that closes its known traps.

- A checkpoint appears in one rename and after it is on the disk, so one that was cut off is never picked up; what it
  holds is checked before it is believed.
- The mean of the losses since the last log line is carried in the checkpoint, so that one can be taken at any step.
- The order of the data is a function of the seed alone; every step sees the same number of sequences.
- Weight decay and learning rate go by a parameter's role, not by its name.
- A loss or weights that are not finite stop the run instead of being filtered out of the log, and are never saved.
- Without CUDA every process says so (``use_cpu``), or two of them would train apart in silence.
- With CUDA a process trains on one GPU (``_n_gpu``), or a step would see as many times the sequences as there are GPUs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mixerzoo import files
from mixerzoo.checkpoints import load_checkpoint, save_checkpoint, save_configuration
from mixerzoo.data import TokenWindows
from mixerzoo.errors import RunError
from mixerzoo.model import Decoder, is_sharded
from mixerzoo.recipe import FsdpConfig, Recipe, kept_of, sequences_per_step, trained_parameters
from mixerzoo.runs import OPTIMIZER_FILE, SCHEDULER_FILE, RunDirectory, complete_checkpoints
from mixerzoo.training.arguments import training_arguments
from mixerzoo.training.mean_weights import MEAN_FILE, MeanWeights
from mixerzoo.training.optimizers import load_state, make_optimizer
from mixerzoo.training.parallel import ParallelTrainer, first_of_all, own_share, shard
from mixerzoo.training.precision import Float8
from mixerzoo.training.process_state import process_file, process_state
from mixerzoo.training.records import Records
from mixerzoo.training.saving import Pending
from mixerzoo.training.sharded import Writing, load_optimizer, load_weights
from mixerzoo.training.state import (
    check_optimizer,
    check_scheduler,
    check_trainer_state,
    random_state,
    read_state,
    set_random_state,
    written,
)

__all__ = [
    "MixerZooTrainer",
    "NextTokenLoss",
    "SeededOrder",
    "complete_checkpoints",
]


_LOWER = "lower train.learning_rate, lengthen train.warmup_fraction, or clip with train.max_grad_norm"


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

    def forward(self, input_ids: Tensor, labels: Tensor, documents: Tensor | None = None) -> dict[str, Tensor]:
        """Cross-entropy of labels [B, T] (already shifted) given input_ids [B, T], in documents [B, T] apart."""
        return {"loss": self.decoder.loss(input_ids, labels, documents=documents)}


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


class MixerZooTrainer(ParallelTrainer):
    """Trainer over a `NextTokenLoss`, run as a recipe's ``train`` section says.

    Args:
        decoder: the model, with its initial weights.
        recipe: the experiment.
        dataset: items ``{"input_ids": [T], "labels": [T]}``, and ``documents`` where these are apart.
        directory: where checkpoints go.
        callbacks: Trainer callbacks.
        run: whose checkpoints they are; None: they belong to no run.
    """

    def __init__(
        self,
        decoder: Decoder,
        recipe: Recipe,
        dataset: Dataset[dict[str, Tensor]],
        directory: Path,
        callbacks: list[TrainerCallback],
        run: RunDirectory | None = None,
    ) -> None:
        self.recipe = recipe
        self.directory = directory
        self.run = run
        self._saving_into: Path | None = None
        self._pending: Pending | None = None
        self._writing: Writing | None = None
        self._group: Any = None
        self.float8 = Float8(decoder) if recipe.train.precision == "float8" else None
        decoder.model.activation_checkpointing = recipe.train.activation_checkpointing
        decoder.model.reset_positions = recipe.data.reset_positions
        decoder.model.compile_training(recipe.train.compile)
        args = training_arguments(recipe, directory)
        if recipe.train.parallel == "fsdp":
            shard(decoder, recipe.train.fsdp or FsdpConfig(), args.device)
            if recipe.train.async_checkpoints:
                self._group = torch.distributed.new_group(backend="gloo")
        super().__init__(
            model=NextTokenLoss(decoder),
            args=args,
            train_dataset=dataset,
            callbacks=callbacks,
        )
        documents = dataset.document_lengths() if isinstance(dataset, TokenWindows) else None
        self.records = Records(recipe, decoder, self.args.device, self.args.world_size, documents)
        self.mean_weights = None if recipe.train.ema is None else MeanWeights(decoder, recipe.train.ema)
        if self.mean_weights is not None:
            self.add_callback(self.mean_weights)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    @property
    def decoder(self) -> Decoder:
        """The model being trained."""
        assert isinstance(self.model, NextTokenLoss)
        return self.model.decoder

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """A block in which the decoder is what the run would save: with the mean of its weights, and no float8."""
        with ExitStack() as stack:
            if self.mean_weights is not None:
                stack.enter_context(self.mean_weights.within())
            if self.float8 is not None:
                stack.enter_context(self.float8.without())
            yield

    def finish(self) -> Decoder:
        """The decoder as the run saves it; it trains no longer."""
        if self.mean_weights is not None:
            self.mean_weights.put_in()
        if self.float8 is not None:
            self.float8.take_out()
        return self.decoder

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.recipe, self.decoder)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, Sized)
        train = self.recipe.train
        count = train.steps * train.accumulation * train.batch_size * self.args.world_size
        return SeededOrder(len(dataset), count, self.recipe.seed)

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._saving_into or self.directory)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.check_finite()
        with self.records.stopwatch.paused():
            self.finish_saving()
            target = self.directory / f"checkpoint-{self.state.global_step}"
            self._saving_into = Path(self.agreed(str(files.unfinished(target))))
            try:
                if self.args.should_save:
                    self.directory.mkdir(exist_ok=True)
                    self._saving_into.mkdir()
                    # Before the other processes write theirs into it.
                    (self._saving_into / target.name).mkdir()
                self.accelerator.wait_for_everyone()
                with written(target):
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save and self.run is not None:
                    self.run.check_there()
                    self.run.metrics.copy_to(self._saving_into / target.name)
                self._pending = self._to_publish(self._saving_into / target.name, target)
                if self._group is None:
                    self.finish_saving()
            except BaseException:
                shutil.rmtree(self._saving_into, ignore_errors=True)
                raise
            finally:
                self._saving_into = None

    def _to_publish(self, folder: Path, target: Path) -> Pending:
        return Pending(
            folder,
            target,
            step=self.state.global_step,
            processes=self.args.world_size,
            sequences=sequences_per_step(self.recipe, self.args.world_size),
            # Without any, a run that is cut off would begin anew; what a finished one keeps is decided at its end.
            keep=max(1, self.recipe.train.keep_checkpoints),
            run=self.run,
            main=self.args.should_save,
            writing=self._writing,
        )

    def finish_saving(self, *, wait: bool = True) -> None:
        """Give a checkpoint that is written its name, if there is one without.

        Args:
            wait: whether for one that is still being written.

        Raises:
            RunError: a process could not write.
            OSError: the disk is full or fails.
        """
        pending = self._pending
        if pending is not None and (wait or pending.done):
            self._pending = None
            pending.publish()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.finish_saving(wait=False)
        return super().training_step(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save and is_sharded(self.decoder):
            save_configuration(self.decoder, Path(output_dir or self.directory))
        elif self.args.should_save:
            save_checkpoint(self.decoder, output_dir or self.directory)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        parts: dict[str, Any] = {OPTIMIZER_FILE: self.optimizer, SCHEDULER_FILE: self.lr_scheduler}
        if is_sharded(self.decoder):
            self._writing = Writing(self.decoder, parts.pop(OPTIMIZER_FILE), Path(output_dir), self._group)
        if not self.args.should_save:
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        if self.mean_weights is not None:
            states[MEAN_FILE] = self.mean_weights.state()
        for name, state in states.items():
            with written(Path(output_dir, name)):
                torch.save(state, Path(output_dir, name))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what each process has of its own: random numbers, the loss since the last log line, records."""
        path = process_file(output_dir, self.args.process_index, self.args.world_size)
        state = {
            "random": random_state(),
            "loss": self._tr_loss.detach().cpu(),
            "logged": self._globalstep_last_logged,
            "records": self.records.state(),
        }
        with written(path):
            torch.save(state, path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        check_trainer_state(folder, _step_of(folder))
        self.load_weights(folder)

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a checkpoint, and what it measured of the time.

        Raises:
            CheckpointError: they cannot be read, or are not those of this decoder.
            RunError: the rest of it cannot be read.
        """
        if is_sharded(self.decoder):
            load_weights(self.decoder, folder)
        else:
            try:
                self.decoder.load_state_dict(load_checkpoint(folder).state_dict())
            except RuntimeError as error:
                raise RunError(f"{folder}: holds the weights of another decoder than the recipe's") from error
        if self.mean_weights is not None:
            self.mean_weights.load_state(read_state(folder / MEAN_FILE), folder / MEAN_FILE)
        state, path = self._process_state(folder)
        self.records.load_state(state["records"], path)

    def _process_state(self, folder: Path) -> tuple[dict[str, Any], Path]:
        return process_state(folder, self.args.process_index, self.args.world_size, _step_of(folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        folder = Path(checkpoint)
        step = _step_of(folder)
        schedule, may_lag = read_state(folder / SCHEDULER_FILE), self.recipe.train.precision == "fp16"
        check_scheduler(schedule, self.lr_scheduler.state_dict(), folder / SCHEDULER_FILE, step, may_lag=may_lag)
        if is_sharded(self.decoder):
            load_optimizer(self.decoder, self.optimizer, folder, schedule["_last_lr"])
        else:
            optimizer = read_state(folder / OPTIMIZER_FILE)
            trained = trained_parameters(self.recipe, self.decoder).values()
            kept = {id(each.parameter): kept_of(self.recipe, each) for each in trained}
            check_optimizer(optimizer, self.optimizer, folder / OPTIMIZER_FILE, step, kept, may_lag=may_lag)
            load_state(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state, path = self._process_state(Path(checkpoint))
        if state["random"] is not None:
            set_random_state(state["random"], path)
        self._tr_loss = state["loss"].to(self._tr_loss)
        self._globalstep_last_logged = state["logged"]

    def check_finite(self) -> None:
        """Stop a run that can no longer end well, wherever its log lines fall.

        Raises:
            RunError: the loss since the last log line, or a weight, is not finite.
        """
        loss = self._tr_loss.detach().reshape(1)
        if self.args.world_size > 1:
            loss = self.accelerator.gather(loss)
        self._refuse_not_finite({"loss": loss.mean().item()})
        shares = ((name, own_share(parameter)) for name, parameter in self.decoder.named_parameters())
        bad = next((name for name, share in shares if not share.isfinite().all()), None)
        if is_sharded(self.decoder):
            bad = first_of_all(bad)
        if bad is not None:
            raise RunError(f"the weights of {bad} are not finite after step {self.state.global_step}; {_LOWER}")

    def _refuse_not_finite(self, logs: dict[str, float]) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RunError(f"the loss became {logs['loss']} by step {self.state.global_step}; {_LOWER}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and stop a run whose loss is no longer a number.

        Raises:
            RunError: the loss is not finite.
        """
        super().log(logs, start_time)
        self._refuse_not_finite(logs)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
