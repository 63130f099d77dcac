"""What is refused before anything is spent on a run, and before anything of an earlier one is removed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixerzoo.data import HfSource, PretrainedTokenizer, StdlibSource, TextSource
from mixerzoo.data.files import expand_user
from mixerzoo.errors import RunError
from mixerzoo.model import check_backend, default_device
from mixerzoo.recipe import Recipe, check_size, compute_dtype, find_recipe
from mixerzoo.training.optimizers import check_optimizer_installed
from mixerzoo.training.parallel import check_parallel
from mixerzoo.training.precision import check_precision
from mixerzoo.training.processes import idle_gpus
from mixerzoo.training.trackers import check_trackers


def check_possible(recipe: Recipe) -> list[str]:
    """Fail before minutes go into the data of a recipe that cannot run, and before it replaces a run.

    Args:
        recipe: of the run.

    Returns:
        What is worth a line.

    Raises:
        RunError, BackendError, RecipeError, MixerError: it cannot run on this machine.
    """
    check_parallel(recipe)
    check_precision(recipe.train.precision)
    check_trainable(recipe, default_device())
    return [*idle_gpus(), *check_size(recipe)]


def check_trainable(recipe: Recipe, device: str) -> None:
    """Refuse what is not installed here, and attention that has no training on a device.

    Args:
        recipe: of a run.
        device: ``cpu`` or ``cuda``, with or without a number.

    Raises:
        RunError: a tracker or an optimiser is not installed.
        BackendError: the attention backend cannot train there.
    """
    check_trackers(recipe)
    check_optimizer_installed(recipe)
    dtype = compute_dtype(recipe.train.precision)
    check_backend(recipe.model.attention_backend, device, training=True, dtype=dtype)


def check_apart(recipe: Recipe, directory: Path, file: str | os.PathLike[str] | None = None) -> None:
    """Refuse to replace a run in whose directory lies what the new one is made of.

    Args:
        recipe: of the new run.
        directory: of the run that is to be replaced.
        file: of the recipe, or a name; None: it has none.

    Raises:
        RunError: something lies there.
        DataError: a path is in the home directory of a user that is not there.
    """
    own = [] if file is None else [("the recipe", find_recipe(Path(file)))]
    for what, path in (*own, *_inputs(recipe)):
        if os.path.exists(path) and path.resolve().is_relative_to(directory.resolve()):
            raise RunError(
                f"{what} {path} lies in {directory}, which --overwrite would replace; copy it elsewhere, or choose "
                "another directory with --out"
            )


def _inputs(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """The paths that a recipe names, each with its key."""
    model, data = recipe.model, recipe.data
    if model.init_from is not None:
        yield "model.init_from", Path(model.init_from)
    if isinstance(data.tokenizer, PretrainedTokenizer):
        yield "data.tokenizer.path", expand_user(data.tokenizer.path)
    for number, source in enumerate(data.all_sources):
        key = "data.source" if data.sources is None else f"data.sources.{number}.source"
        for pattern in _patterns(source):
            yield key, _fixed(expand_user(pattern))


def _patterns(source: StdlibSource | TextSource | HfSource) -> Iterator[str]:
    """The files of a source, as its recipe names them."""
    if isinstance(source, TextSource):
        yield from (*source.paths, *(source.validation_paths or ()))
    elif isinstance(source, HfSource):
        yield source.path
        yield from _flat(source.data_files)


def _flat(names: Any) -> Iterator[str]:
    if isinstance(names, str):
        yield names
    elif names is not None:
        for each in names.values() if isinstance(names, Mapping) else names:
            yield from _flat(each)


def _fixed(pattern: Path) -> Path:
    """The folder from which a pattern looks; what is no pattern as it is."""
    while glob.has_magic(str(pattern)) and not os.path.exists(pattern):
        pattern = pattern.parent
    return pattern
