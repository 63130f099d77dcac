"""The decoder of a recipe."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mixerzoo.checkpoints import load_checkpoint
from mixerzoo.errors import MixerError, MixerzooError, RecipeError
from mixerzoo.mixer import load_registry
from mixerzoo.model import Decoder, check_backend, find_device, find_dtype, materialize, remix
from mixerzoo.recipe.parameter_groups import width_ratio
from mixerzoo.recipe.read import disagreements, to_recipe
from mixerzoo.recipe.recipe import Recipe

#: Of a decoder of which only the shape is asked.
_ANY_VOCABULARY = 1024


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
        check_backend(recipe.model.attention_backend, where)
        source = load_checkpoint(recipe.model.init_from, dtype, device=where)
        differing = disagreements(recipe, source.config)
        if differing:
            raise RecipeError("\n".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in differing))
        return remix(source, mixer, recipe.mixer.options, seed=recipe.seed, config=recipe.model.decoder_config())
    ratio = width_ratio(recipe)
    return materialize(decoder, recipe.seed, device=where, dtype=dtype, width_ratio=ratio)


def check_buildable(recipe: Recipe) -> None:
    """Refuse a recipe whose decoder cannot be built, also where its vocabulary is still open.

    Args:
        recipe: the experiment.

    Raises:
        MixerError: the mixer cannot work on this decoder.
        BackendError: the attention backend would not compute all of its attention.
    """
    known = recipe.model.vocab_size or recipe.data.vocab_size
    build(recipe if known else recipe.with_vocab_size(_ANY_VOCABULARY), device="meta")


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
