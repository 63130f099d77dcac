"""The recipe: one YAML file that is the whole experiment."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixerzoo.checkpoints import load_checkpoint, load_config
from mixerzoo.data.config import DataConfig
from mixerzoo.errors import CheckpointError, MixerError, MixerzooError, RecipeError
from mixerzoo.mixer import MixerChoice, MixerConfig, check_choice, load_registry
from mixerzoo.model import Decoder, ModelConfig, find_device, find_dtype, materialize, remix
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.validation import Problem, problems, shown
from mixerzoo.yaml_text import to_yaml

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


#: Steps of a run; the longest that were ever run have a few million.
_MAX_STEPS = 10**9
#: Positive numbers below are lost in a product with a weight.
_LEAST = 1e-30


class TrainConfig(BaseModel):
    """How the decoder is trained. One step sees ``batch_size × accumulation`` sequences."""

    model_config = _STRICT

    steps: int = Field(ge=1, le=_MAX_STEPS, description="Optimiser steps.")
    batch_size: int = Field(ge=1, le=2**16, description="Sequences per forward, on each device.")
    accumulation: int = Field(1, ge=1, le=2**16, description="Forwards per optimiser step.")
    learning_rate: float = Field(gt=0, le=1e30, description="Peak learning rate of AdamW.")
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine",
        description="After warm-up: cosine to the final rate, constant, or stable and then linear decay.",
    )
    warmup_fraction: float = Field(0.02, ge=0, lt=1, description="Share of the steps that warm up linearly.")
    decay_fraction: float = Field(0.2, ge=1e-9, le=1, description="Share of the steps that decay (wsd only).")
    final_learning_rate_fraction: float = Field(
        0.0, ge=0, le=1, description="Final over peak learning rate (cosine and wsd)."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first decay.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's second decay.")
    weight_decay: float = Field(
        0.1, ge=0, le=1e3, description="Of what decays by its role: the decoder's matrices, and what a mixer names."
    )
    max_grad_norm: float = Field(1.0, ge=0, le=1e30, description="Clip the gradient to this norm; 0 does not clip.")
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16 is autocast; weights stay float32.")
    compile: bool = Field(False, description="Run the forward and backward through torch.compile.")
    activation_checkpointing: bool = Field(False, description="Recompute each layer in the backward.")
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

    @model_validator(mode="after")
    def _float32_can_hold(self) -> Self:
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            if 0 < getattr(self, name) < _LEAST:
                raise ValueError(f"{name} {getattr(self, name)} is nothing in float32; the least is {_LEAST}")
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


def parse_recipe(source: YamlSource) -> Recipe:
    """Validate a recipe.

    Raises:
        RecipeError: lists every problem with its place.
    """
    data = dict(source.data)
    found: list[Problem] = []
    initial = None
    model = data.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("init_from"), str):
        data, initial, found = completed(data)
        if found:
            raise RecipeError("\n".join(f"{source.where(problem)}: {problem.message}" for problem in found))
    if isinstance(data.get("mixer"), Mapping):
        checked = check_choice(data["mixer"])
        if isinstance(checked, MixerChoice):
            data["mixer"] = checked
        else:
            found += [problem.below("mixer") for problem in checked]
            # Any valid mixer, so that the rest of the recipe is checked in the same pass.
            data["mixer"] = MixerChoice.model_construct(name="", options=MixerConfig())
    elif isinstance(data.get("mixer"), str):
        name = data["mixer"]
        found.append(Problem(("mixer",), f"expected a mapping, got {name!r}; write {{name: {name}}}"))
        data["mixer"] = MixerChoice.model_construct(name="", options=MixerConfig())
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found += problems(error, Recipe, data)
    if recipe is not None and recipe.model.init_from is not None:
        found += disagreements(recipe, initial)
    if found or recipe is None:
        raise RecipeError("\n".join(f"{source.where(problem)}: {problem.message}" for problem in found))
    return recipe


#: What decides names and shapes of the weights, and so must be a checkpoint's own.
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "resolved_kv_heads",
    "resolved_head_dim",
    "vocab_size",
    "qk_norm",
    "tie_embeddings",
    "attention",
    "mla",
    "attention_bias",
    "mlp_bias",
)


def completed(data: Mapping[str, Any]) -> tuple[dict[str, Any], ModelConfig | None, list[Problem]]:
    """A recipe's mapping with what it leaves to the checkpoint of its ``model.init_from``.

    Args:
        data: its ``model`` may lack any other key, and ``data`` the tokenizer.

    Returns:
        The mapping, the checkpoint's ``model`` if it was read (a resolved recipe does without it), and what is wrong.
    """
    data, model = dict(data), data["model"]
    path = model["init_from"]
    text = data.get("data")
    if isinstance(text, Mapping) and "tokenizer" not in text:
        data["data"] = {**text, "tokenizer": {"name": "pretrained", "path": path}}
    if model.keys() >= ModelConfig.model_fields.keys():
        return data, None, []
    try:
        initial = load_config(path)[0]
    except CheckpointError as error:
        return data, None, [Problem(("model", "init_from"), line) for line in str(error).splitlines()]
    own = initial.model_dump(exclude={"attention_backend"}, exclude_defaults=True)
    data["model"] = {**{key: value for key, value in own.items() if key not in model}, **model}
    return data, initial, []


def disagreements(recipe: Recipe, initial: ModelConfig | None) -> list[Problem]:
    """Why a recipe cannot start from the checkpoint of its ``model.init_from``.

    Args:
        recipe: what was asked for.
        initial: what the checkpoint has; None: it was not read, and only the tokenizer's kind is looked at.
    """
    found = []
    if recipe.data.tokenizer.name != "pretrained":
        right = f"{{name: pretrained, path: {recipe.model.init_from}}}"
        message = f"weights of model.init_from know their own tokens only; leave it out, or set {right}"
        found.append(Problem(("data", "tokenizer"), message))
    if initial is None:
        return found
    for name in _SIZES:
        ours, theirs = getattr(recipe.model, name), getattr(initial, name)
        if ours != theirs:
            message = f"is {shown(ours)}, but {recipe.model.init_from} has {shown(theirs)}; leave it out, or set that"
            key = {"resolved_kv_heads": "num_kv_heads", "resolved_head_dim": "head_dim"}.get(name, name)
            found.append(Problem(("model", key), message))
    return found


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: of the YAML file.
        overrides: each ``"key.path=value"``.

    Raises:
        RecipeError: names file, line and key of everything that is wrong.
    """
    return parse_recipe(YamlSource.read(Path(path), overrides))


def to_recipe(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """A recipe in any of its forms.

    Args:
        recipe: a `Recipe`, the mapping that it is validated from, or the path of a recipe file.

    Raises:
        RecipeError: it is none of them, or not valid.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return parse_recipe(YamlSource.of(recipe, "recipe"))
    if isinstance(recipe, str | os.PathLike):
        return load_recipe(Path(recipe))
    raise RecipeError(
        f"the recipe is {type(recipe).__name__}; it must be a mixerzoo.Recipe, a mapping, or the path of a recipe file"
    )


def build(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> Decoder:
    """The decoder of a recipe with its initial weights.

    Args:
        recipe: a `Recipe`, the mapping it is validated from, or the path of a recipe file. With
            ``model.init_from`` the initial weights are that checkpoint's.
        device: where the weights go; ``"meta"`` builds the structure alone.
        dtype: of the weights, as ``torch.float64`` or ``"float64"``.

    Raises:
        RecipeError: the recipe is not valid, or its vocabulary size is still open.
        MixerError: the mixer cannot work on this decoder.
        CheckpointError: the checkpoint of ``model.init_from`` cannot be read.
        BackendError: there is no such device or dtype, or the attention backend cannot run there.
    """
    where, dtype = find_device(device), find_dtype(dtype)
    recipe = to_recipe(recipe)
    if recipe.data.vocab_size is not None:
        recipe = recipe.with_vocab_size(recipe.data.vocab_size)
    mixer = load_registry().get(recipe.mixer.name).mixer
    with in_words(recipe.mixer.name), torch.device("meta"):
        decoder = Decoder(recipe.model.decoder_config(), mixer, recipe.mixer.options)
    if where.type == "meta":
        return decoder.to(dtype)
    if recipe.model.init_from is not None:
        backend = recipe.model.attention_backend
        source = load_checkpoint(recipe.model.init_from, dtype, attention_backend=backend, device=where)
        differing = disagreements(recipe, source.config)
        if differing:
            raise RecipeError("\n".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in differing))
        return remix(source, mixer, recipe.mixer.options, seed=recipe.seed, config=recipe.model.decoder_config())
    return materialize(decoder, recipe.seed, device=where, dtype=dtype)


@contextmanager
def in_words(mixer: str) -> Iterator[None]:
    """Say of whatever a mixer's code raises while it is built or counted that it is the mixer's.

    Args:
        mixer: its name.

    Raises:
        MixerError: something was raised.
    """
    try:
        yield
    except MixerzooError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {shown_text(error)} ({Path(last.filename).name}:{last.lineno})"
        raise MixerError(f"mixer {mixer!r} cannot be built with these options on this decoder: {reason}") from error


def shown_text(error: Exception) -> str:
    """The first line of an error's own words, cut short."""
    lines = str(error).splitlines()
    return lines[0][:300] if lines else ""


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipes, with the options of every installed mixer, for editors."""
    schema = Recipe.model_json_schema()
    choices = []
    for name, entry in load_registry().entries.items():
        options = entry.mixer.Config.model_json_schema()
        # References point to the root: what an option's type is made of goes there.
        schema["$defs"] = options.pop("$defs", {}) | schema["$defs"]
        properties = {"name": {"const": name, "description": entry.mixer.card.summary}}
        choices.append(
            {
                **options,
                "title": name,
                "properties": properties | options.get("properties", {}),
                "required": ["name", *options.get("required", [])],
            }
        )
    schema["$defs"]["MixerChoice"] = {"oneOf": choices}
    # A checkpoint supplies what is left out.
    alone = {"not": {"required": ["init_from"]}}
    model, data = schema["$defs"]["RecipeModel"], schema["$defs"]["DataConfig"]
    model |= {"if": alone, "then": {"required": model.pop("required")}}
    data["required"].remove("tokenizer")
    schema |= {
        "if": {"properties": {"model": alone}},
        "then": {"properties": {"data": {"required": ["tokenizer"]}}},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mixerzoo recipe", **schema}
