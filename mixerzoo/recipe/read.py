"""Reads recipes: completed from a checkpoint, checked, with the place of everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixerzoo.checkpoints import load_config
from mixerzoo.errors import CheckpointError, RecipeError
from mixerzoo.mixer import MixerChoice, MixerConfig, check_choice
from mixerzoo.model import ModelConfig
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.validation import Problem, problems, shown

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
        path: of the YAML file, or the name of a recipe that comes with the package.
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
