"""The recipe: one YAML file that is the whole experiment."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mixerzoo.data.config import DataConfig
from mixerzoo.errors import RecipeError
from mixerzoo.mixer import MixerChoice
from mixerzoo.model import Compiled, ModelConfig, Recompute, unfit
from mixerzoo.recipe.optimizer import (
    AdafactorOptimizer,
    AdamwOptimizer,
    LionOptimizer,
    OptimizerChoice,
    ParameterGroup,
    ParameterGroups,
    WidthScaling,
    check_moments,
)
from mixerzoo.recipe.parallel import FsdpConfig, Parallel, check_sharding
from mixerzoo.recipe.precision import Precision
from mixerzoo.yaml_text import to_yaml

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


#: Steps of a run; the longest that were ever run have a few million.
_MAX_STEPS = 10**9
#: Positive numbers below are lost in a product with a weight.
_LEAST = 1e-30


#: Trackers that the Trainer has an integration for.
Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
# YAML gives lists; a frozen model holds tuples.
_Trackers = Annotated[tuple[Tracker, ...], Field(strict=False)]


def _mode(given: Any) -> Any:
    return {True: "layers", False: "off"}[given] if isinstance(given, bool) else given


_Compile = Annotated[Compiled, BeforeValidator(_mode, json_schema_input_type=Compiled | bool)]


def _recompute(given: Any) -> Any:
    return {True: "layers", False: "none"}[given] if isinstance(given, bool) else given


_Recompute = Annotated[Recompute, BeforeValidator(_recompute, json_schema_input_type=Recompute | bool)]


class TrainConfig(BaseModel):
    """How the decoder is trained. One step sees ``batch_size × accumulation`` sequences."""

    model_config = _STRICT

    steps: int = Field(ge=1, le=_MAX_STEPS, description="Optimiser steps.")
    batch_size: int = Field(ge=1, le=2**16, description="Sequences per forward, on each device.")
    accumulation: int = Field(1, ge=1, le=2**16, description="Forwards per optimiser step.")
    optimizer: OptimizerChoice = Field(AdamwOptimizer(), description="AdamW, Muon, Adafactor or Lion.")
    learning_rate: float = Field(gt=0, le=1e30, description="Peak learning rate.")
    groups: ParameterGroups = Field(ParameterGroups(), description="Rates and decay of each kind of parameters.")
    width_scaling: WidthScaling | None = Field(
        None, description="Scale rates and initial weights with the width, as µP does."
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of the mean of the weights that is validated and saved; default: none."
    )
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine",
        description="After warm-up: cosine to the final rate, constant, or stable and then linear decay.",
    )
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    decay_fraction: float = Field(0.2, ge=1e-9, le=1, description="Share of the steps that decay (wsd only).")
    final_learning_rate_fraction: float = Field(
        0.0, ge=0, le=1, description="Final over peak learning rate (cosine and wsd)."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="First decay (adamw, and what muon leaves to it).")
    beta2: float = Field(0.95, ge=0, lt=1, description="Second decay (as beta1).")
    weight_decay: float = Field(
        0.1, ge=0, le=1e3, description="Of what decays by its role: the decoder's matrices, and what a mixer names."
    )
    max_grad_norm: float = Field(1.0, ge=0, le=1e30, description="Clip the gradient to this norm; 0 does not clip.")
    precision: Precision = Field(
        "float32",
        description="bf16 and fp16 are autocast with weights in float32; bf16_weights has no other weights; float8 "
        "multiplies the layers' matrices in it, and else is bf16.",
    )
    compile: _Compile = Field(
        "off",
        description="Whether torch.compile runs the steps: what repeats once for all layers (true is that too), all as "
        "one whole graph, or off (false).",
    )
    activation_checkpointing: _Recompute = Field(
        "none",
        description="What is computed again in the backward, and not kept: `none` (false is that too), `layers` (or "
        "true), `selective`, which keeps what linear layers and attention's kernels gave, or one layer in n with "
        "`{every: n}`.",
    )
    parallel: Parallel = Field(
        "ddp",
        description="What each of several devices has: `ddp` all weights, `fsdp` a share of weights, gradients and "
        "optimizer state.",
    )
    fsdp: FsdpConfig | None = Field(None, description="How `parallel: fsdp` shares out; default: its defaults.")
    log_interval: int = Field(10, ge=1, le=_MAX_STEPS, description="Steps between lines of metrics.jsonl.")
    checkpoint_interval: int | None = Field(
        None, ge=1, le=_MAX_STEPS, description="Steps between checkpoints; default: a tenth of the steps."
    )
    keep_checkpoints: int = Field(
        2,
        ge=0,
        le=10_000,
        description="How many of the newest checkpoints to keep; 0: one while training, none once finished.",
    )
    async_checkpoints: bool = Field(
        False, description="Whether training goes on while a checkpoint is written; with `parallel: fsdp` alone."
    )
    trackers: _Trackers = Field((), description="Trackers that are told all metrics; each is an extra to install.")

    @model_validator(mode="after")
    def _each_tracker_once(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: one is there twice: {', '.join(self.trackers)}")
        return self

    @model_validator(mode="after")
    def _sharding_is_possible(self) -> Self:
        if self.fsdp is not None and self.parallel != "fsdp":
            raise ValueError(f"fsdp has no meaning with parallel {self.parallel}; remove it, or set parallel to fsdp")
        if self.fsdp is not None and self.fsdp.mixed_precision and self.precision != "bf16":
            raise ValueError(
                f"fsdp.mixed_precision gathers weights in bf16, and precision is {self.precision}; set that to bf16, "
                "or leave mixed_precision out"
            )
        if self.parallel == "fsdp":
            check_sharding(self.optimizer, self.precision, self.ema, self.compile)
        if self.async_checkpoints and self.parallel != "fsdp":
            raise ValueError("async_checkpoints writes what parallel fsdp shares out; set it to false")
        return self

    @model_validator(mode="after")
    def _float32_can_hold(self) -> Self:
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            if 0 < getattr(self, name) < _LEAST:
                raise ValueError(f"{name} {getattr(self, name)} is nothing in float32; the least is {_LEAST}")
        return self

    @model_validator(mode="after")
    def _optimizer_uses_its_keys(self) -> Self:
        name = self.optimizer.name
        for key in ("beta1", "beta2"):
            if isinstance(self.optimizer, LionOptimizer | AdafactorOptimizer) and getattr(self, key) != _default(
                self, key
            ):
                raise ValueError(f"{key} is AdamW's and has no meaning with {name}; remove it{_own_key(self, key)}")
        halved = self.precision == "bf16_weights"
        if halved and getattr(self.optimizer, "state_precision", None) is not None:
            raise ValueError(
                "optimizer.state_precision has no meaning with precision bf16_weights, which keeps the state in bf16 "
                "already; set it to null"
            )
        wrong = check_moments(self.optimizer, self.beta1, self.beta2, halved=halved)
        if wrong is not None:
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _schedule_uses_its_keys(self) -> Self:
        if self.schedule != "wsd" and self.decay_fraction != _default(self, "decay_fraction"):
            raise ValueError(f"decay_fraction has no meaning with schedule {self.schedule}; remove it, or set wsd")
        if self.schedule == "constant" and self.final_learning_rate_fraction:
            raise ValueError("final_learning_rate_fraction has no meaning with schedule constant; remove it")
        if self.schedule == "wsd" and self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction {self.warmup_fraction} and decay_fraction {self.decay_fraction} are more than the "
                "whole run"
            )
        return self

    @property
    def resolved_checkpoint_interval(self) -> int:
        """Steps between checkpoints, with the default applied: a tenth, rounded up to a multiple of log_interval."""
        if self.checkpoint_interval is not None:
            return self.checkpoint_interval
        return -(-self.steps // (10 * self.log_interval)) * self.log_interval


def _own_key(config: TrainConfig, key: str) -> str:
    """Where the optimiser has its own option of that name."""
    if key not in type(config.optimizer).model_fields:
        return ""
    return f", or set optimizer={{name: {config.optimizer.name}, {key}: {getattr(config, key)}}}"


def _default(config: BaseModel, name: str) -> Any:
    return type(config).model_fields[name].default


class EvalConfig(BaseModel):
    """How validation is done: an exact sum over tokens."""

    model_config = _STRICT

    interval: int | None = Field(
        None, ge=1, le=_MAX_STEPS, description="Steps between validations; default: only at the end."
    )
    batch_size: int = Field(16, ge=1, le=2**16, description="Sequences per forward.")
    max_sequences: int | None = Field(
        None, ge=1, le=2**53, description="Sequences used while training; the final validation uses all."
    )

    @model_validator(mode="after")
    def _part_is_used(self) -> Self:
        if self.max_sequences is not None and self.interval is None:
            raise ValueError(
                "max_sequences has no meaning without interval: it is for validations while training, and the final "
                "one uses all; remove it, or set interval"
            )
        return self


class RecipeModel(ModelConfig):
    """Sizes and conventions of the decoder, and where its weights come from."""

    init_from: str | None = Field(
        None,
        min_length=1,
        description="A checkpoint whose weights are the initial ones; what else `model` leaves out is taken from it.",
    )

    def decoder_config(self) -> ModelConfig:
        """What a decoder is built from, whatever its weights are."""
        return ModelConfig(**{name: getattr(self, name) for name in ModelConfig.model_fields})


class Recipe(BaseModel):
    """One experiment: model, mixer, data, training, evaluation and seed."""

    model_config = _STRICT

    model: RecipeModel = Field(description="The decoder.")
    mixer: MixerChoice = Field(description="The mixer and its options.")
    data: DataConfig = Field(description="Text and tokenizer.")
    train: TrainConfig = Field(description="Training.")
    eval: EvalConfig = Field(EvalConfig(), description="Validation.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of the initial weights and the order of the data.")

    @model_validator(mode="after")
    def _backend_knows_documents(self) -> Self:
        if self.data.document_mask and self.model.attention_backend == "flash":
            raise ValueError(
                "data.document_mask needs attention within documents, and the model.attention_backend flash knows "
                "earlier tokens from later ones and nothing of documents; set it to sdpa or flex"
            )
        return self

    @model_validator(mode="after")
    def _backend_computes_the_attention(self) -> Self:
        reason = unfit(self.model)
        if reason is not None:
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _tied_head_is_the_embedding(self) -> Self:
        if not self.model.tie_embeddings:
            return self
        if self.train.groups.head != ParameterGroup():
            raise ValueError(
                "train.groups.head has no meaning with model.tie_embeddings: the head is the embedding; set "
                "train.groups.embedding"
            )
        if self.train.width_scaling is not None:
            raise ValueError(
                "train.width_scaling would have to scale the logits where model.tie_embeddings is true, for the rate "
                "of the embedding stays; set model.tie_embeddings=false"
            )
        return self

    def with_vocab_size(self, vocab_size: int) -> Recipe:
        """The recipe with an open ``model.vocab_size`` filled in.

        Args:
            vocab_size: of the tokenizer.

        Raises:
            RecipeError: the recipe sets a smaller one than the tokenizer needs.
        """
        own = self.model.vocab_size
        if own is not None:
            if own < vocab_size:
                raise RecipeError(f"model.vocab_size is {own}, but the tokenizer has {vocab_size} tokens")
            return self
        return self.model_copy(update={"model": self.model.model_copy(update={"vocab_size": vocab_size})})

    def from_scratch(self) -> Recipe:
        """The recipe without ``model.init_from``."""
        return self.model_copy(update={"model": self.model.model_copy(update={"init_from": None})})

    def to_yaml(self) -> str:
        """The recipe as YAML with every default written out."""
        return to_yaml(self.model_dump(mode="json"))
