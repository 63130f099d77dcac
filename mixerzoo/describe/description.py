"""What a recipe's decoder costs, beside a plain residual one.

Everything is computed on the meta device: no weight is ever allocated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mixerzoo.describe.picture import picture
from mixerzoo.errors import RecipeError
from mixerzoo.mixer import DecoderShape, load_registry
from mixerzoo.model import Decoder, flops_per_token
from mixerzoo.process import KNOWN_GPUS, launch, peak_of
from mixerzoo.recipe import (
    FORWARDS_PER_STEP,
    Recipe,
    TrainingMemory,
    build,
    compute_dtype,
    idle_groups,
    in_words,
    remembered,
    sense,
    tokens_of_run,
    training_memory,
)

__all__ = ["BASELINE", "MFU", "Costs", "Description", "count_costs", "describe", "flops_per_token", "picture"]

#: Model FLOPs utilisation of a decoder that is trained well on its GPUs.
MFU = 0.4
#: The mixer that every other one is compared with.
BASELINE = "residual"


@dataclass(frozen=True)
class Costs:
    """What one decoder costs. All bytes are of one dtype.

    Attributes:
        decoder_parameters: of the decoder without its mixer; tied weights count once.
        mixer_parameters: of the mixer.
        parameters: both together.
        weight_bytes: of all parameters.
        kv_bytes_per_token: what one token adds to the cache while no window is full.
        cache_bytes: of the cache of one sequence of the recipe's length.
        in_flight_bytes_per_token: peak bytes of the mixer's state per token of the current forward.
        flops_per_token: see `flops_per_token`.
    """

    decoder_parameters: int
    mixer_parameters: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    cache_bytes: int
    in_flight_bytes_per_token: int
    flops_per_token: int


@dataclass(frozen=True)
class ExpectedTime:
    """How long a run takes at an assumed share of a GPU's peak.

    Attributes:
        gpu: what each device is.
        mfu: model FLOPs utilisation, above 0 and at most 1.
        seconds: of all steps.
    """

    gpu: str
    mfu: float
    seconds: float


@dataclass(frozen=True)
class TrainingCosts:
    """What the whole run takes.

    Attributes:
        tokens: that it trains on: steps × batch × accumulation × sequence × devices.
        tokens_per_step: that one optimiser step sees.
        devices: as asked for, else the processes of torchrun, else 1.
        flops: of all its steps, by the decoder's own account; what is computed again is not counted.
        expected: how long that takes on given GPUs; None where none are given.
        text_tokens: of the training text when it was last trained on here; None where it never was.
        epochs: how often the run reads its text; None where that is not known.
        least_epochs: how often it does at least, as ``data.max_tokens`` bounds the text; None without it.
        memory: of each device.
        notices: what is odd about the run, if anything.
    """

    tokens: int
    tokens_per_step: int
    devices: int
    flops: int
    expected: ExpectedTime | None
    text_tokens: int | None
    epochs: float | None
    least_epochs: float | None
    memory: TrainingMemory
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        memory = {
            "weights_bytes": self.memory.weights,
            "gradients_bytes": self.memory.gradients,
            "optimizer_bytes": self.memory.optimizer,
            "gathered_bytes": self.memory.gathered,
            "average_bytes": self.memory.average,
            "activations_bytes_estimate": self.memory.activations,
            "total_bytes_estimate": self.memory.total,
        }
        return {**asdict(self), "memory": memory, "notices": list(self.notices)}


@dataclass(frozen=True)
class Description:
    """A recipe's decoder, what it costs, and what a plain residual one of the same sizes costs.

    Attributes:
        mixer: name and options.
        shape: the decoder's sizes.
        sequence_length: tokens at which the cache and the FLOPs are counted.
        dtype: of all byte counts.
        costs: with the recipe's mixer.
        baseline: with plain residual addition.
        picture: who reads whom, see `picture`.
        training: what the run takes.
    """

    mixer: dict[str, Any]
    shape: DecoderShape
    sequence_length: int
    dtype: torch.dtype
    costs: Costs
    baseline: Costs
    picture: str
    training: TrainingCosts

    def extra_percent(self) -> dict[str, float | None]:
        """For each cost, by how many percent it exceeds the baseline's; None where that is 0."""
        own, base = asdict(self.costs), asdict(self.baseline)
        return {name: 100 * (own[name] - base[name]) / base[name] if base[name] else None for name in own}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it; the costs of the recipe's own decoder stand at the top level."""
        return {
            "mixer": self.mixer,
            "model": asdict(self.shape),
            "sequence_length": self.sequence_length,
            "dtype": str(self.dtype).removeprefix("torch."),
            **asdict(self.costs),
            BASELINE: asdict(self.baseline),
            "extra_percent": self.extra_percent(),
            "training": self.training.to_dict(),
            "picture": self.picture,
        }


def describe(recipe: Recipe, devices: int | None = None, gpu: str | None = None, mfu: float = MFU) -> Description:
    """Count what a recipe's decoder costs.

    Bytes are counted in the dtype in which the recipe computes: float32, bfloat16 or float16.

    Args:
        recipe: a validated recipe.
        devices: how many train together; default: the processes of torchrun.
        gpu: what each of them is, as ``"H100"``; None: how long the run takes is not asked.
        mfu: model FLOPs utilisation that is assumed then, above 0 and at most 1.

    Raises:
        RecipeError: the vocabulary size is open, and no tokenizer that is known without its data fills it; or the
            peak of the GPU is not known.
        MixerError: the mixer cannot work on this decoder.
    """
    if recipe.model.vocab_size is None and recipe.data.vocab_size is None:
        raise RecipeError(
            "the vocabulary size is open: a pretrained tokenizer is not read here; set it, e.g. model.vocab_size=50304"
        )
    dtype = compute_dtype(recipe.train.precision)
    length = recipe.data.sequence_length
    decoder = build(recipe, device="meta")
    with in_words(recipe.mixer.name):
        costs, drawn, training = (
            count_costs(decoder, length, dtype),
            picture(decoder),
            _training(recipe, decoder, devices, gpu, mfu),
        )
    with torch.device("meta"):
        plain = Decoder(decoder.config, load_registry().get(BASELINE).mixer)
    return Description(
        mixer=recipe.mixer.model_dump(mode="json"),
        shape=decoder.shape,
        sequence_length=length,
        dtype=dtype,
        costs=costs,
        baseline=count_costs(plain, length, dtype),
        picture=drawn,
        training=training,
    )


def _training(recipe: Recipe, decoder: Decoder, devices: int | None, gpu: str | None, mfu: float) -> TrainingCosts:
    devices = devices or launch().world_size
    notices = idle_groups(recipe, decoder)
    tokens, text = tokens_of_run(recipe, devices), remembered(recipe.data)
    if text is not None:
        notices += sense(recipe, text, decoder.shape.vocab_size, devices)
    flops = FORWARDS_PER_STEP * flops_per_token(decoder, recipe.data.sequence_length) * tokens
    return TrainingCosts(
        tokens=tokens,
        tokens_per_step=tokens // recipe.train.steps,
        devices=devices,
        flops=flops,
        expected=None if gpu is None else _expected(flops / devices, gpu, mfu, recipe.train.precision),
        text_tokens=text,
        epochs=None if text is None else tokens / text,
        least_epochs=None if recipe.data.max_tokens is None else tokens / recipe.data.max_tokens,
        memory=training_memory(recipe, decoder, devices),
        notices=tuple(notices),
    )


def _expected(flops: float, gpu: str, mfu: float, precision: str) -> ExpectedTime:
    peak = peak_of(gpu, precision)
    if peak is None:
        raise RecipeError(f"the peak of a GPU {gpu!r} is not known; known: {', '.join(KNOWN_GPUS)}")
    return ExpectedTime(gpu, mfu, flops / (mfu * peak))


def count_costs(decoder: Decoder, sequence_length: int, dtype: torch.dtype) -> Costs:
    """The costs of a decoder on any device.

    Args:
        decoder: the model.
        sequence_length: tokens at which the cache and the FLOPs are counted.
        dtype: of all byte counts.
    """
    of_decoder, mixing = decoder.num_parameters()
    return Costs(
        decoder_parameters=of_decoder,
        mixer_parameters=mixing,
        parameters=of_decoder + mixing,
        weight_bytes=(of_decoder + mixing) * dtype.itemsize,
        kv_bytes_per_token=decoder.plan.bytes_per_token(decoder.shape, dtype),
        cache_bytes=decoder.plan.cache_bytes(decoder.shape, sequence_length, dtype),
        in_flight_bytes_per_token=decoder.mixer.in_flight_bytes(dtype),
        flops_per_token=flops_per_token(decoder, sequence_length),
    )
