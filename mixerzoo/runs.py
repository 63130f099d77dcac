"""The run directory: what a training run leaves behind, and how it is told apart from anything else.

::

    recipe.yaml          the resolved recipe
    run.json             versions, data fingerprint, command
    metrics.jsonl        one line per logged step and per validation
    checkpoints/         what --resume starts from
    config.json  model.safetensors  tokenizer.json  README.md   the result, ready to load
    result.json          final figures; written last, so its presence means "finished"
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from mixerzoo import __version__
from mixerzoo.errors import RecipeError, RunError
from mixerzoo.recipe import Recipe, load_recipe
from mixerzoo.registry import load_registry

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"


class RunDirectory:
    """One run's files.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    @property
    def empty(self) -> bool:
        """Whether nothing is there yet."""
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return (self.path / RESULT_FILE).exists()

    def start(self, recipe: Recipe, fingerprint: str, command: str, *, overwrite: bool) -> None:
        """Claim the directory for a new run.

        Raises:
            RunError: it exists and ``overwrite`` is off, or it exists and does not hold a run.
        """
        self.check_free(overwrite=overwrite)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Both the old run and the new one change places in one step, whenever the process dies.
        old, new = (self.path.with_name(f".{self.path.name}.{kind}") for kind in ("old", "new"))
        for leftover in (old, new):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir()
        write_atomically(new / RUN_FILE, to_json(_provenance(recipe, fingerprint, command)))
        write_atomically(new / RECIPE_FILE, recipe.to_yaml())
        if self.path.exists():
            self.path.rename(old)
        new.rename(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a path that a new run must not use; arguments and errors as in `start`."""
        if self.empty:
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} exists and is not a directory; choose another with --out")
        # A recipe.yaml alone may be the user's own.
        if not ((self.path / RECIPE_FILE).exists() and (self.path / RUN_FILE).exists()):
            raise RunError(
                f"{self.path} exists and does not hold a run (it lacks {RECIPE_FILE} or {RUN_FILE}), so it is "
                "left alone; choose another directory with --out"
            )
        if not overwrite:
            raise RunError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite, "
                "or choose another directory with --out"
            )

    def check_same(self, recipe: Recipe, fingerprint: str) -> None:
        """Refuse to resume anything but the run that the directory holds.

        Raises:
            RunError: there is no run, its recipe differs (says where), or its data changed.
        """
        saved = self.recipe()
        ours, theirs = _flat(recipe.model_dump(mode="json")), _flat(saved.model_dump(mode="json"))
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differing:
            lines = [f"  {key}: was {_text(theirs, key)}, now {_text(ours, key)}" for key in differing]
            raise RunError(
                f"{self.path} was started with another recipe, so it cannot be resumed with this one:\n"
                + "\n".join(lines)
            )
        self.check_data(fingerprint)

    def check_data(self, fingerprint: str) -> None:
        """Refuse data other than the run's own.

        Raises:
            RunError: the data changed, or the run's records cannot be read.
        """
        try:
            began = json.loads((self.path / RUN_FILE).read_text(encoding="utf-8")).get("data_fingerprint")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / RUN_FILE}: damaged: {error}") from error
        if began != fingerprint:
            raise RunError(
                f"{self.path}: the data changed since the run was started (other files, or another Python for "
                "the source 'stdlib'), so its text and its tokenizer are no longer the run's"
            )

    def recipe(self) -> Recipe:
        """The resolved recipe of the run.

        Raises:
            RunError: the directory holds no run.
        """
        path = self.path / RECIPE_FILE
        if not path.exists():
            raise RunError(f"{self.path} holds no run: it has no {RECIPE_FILE}")
        try:
            return load_recipe(path)
        except RecipeError as error:
            raise RunError(f"the run's own recipe cannot be read:\n{error}") from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with (self.path / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop the lines after ``step``, and one that was cut off, so that a resumed run writes them again."""
        path = self.path / METRICS_FILE
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if entry["step"] <= step:
                kept.append(line + "\n")
        write_atomically(path, "".join(kept))

    def result(self) -> dict[str, Any]:
        """The final figures of a finished run.

        Raises:
            RunError: they cannot be read.
        """
        path = self.path / RESULT_FILE
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}") from error
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the final figures, which marks the run as finished."""
        write_atomically(self.path / RESULT_FILE, to_json(result))


def to_json(content: Mapping[str, Any]) -> str:
    """Indented JSON with a final newline."""
    return json.dumps(content, indent=2) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the whole new one, whenever the process dies."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _provenance(recipe: Recipe, fingerprint: str, command: str) -> dict[str, Any]:
    entry = load_registry().get(recipe.mixer.name)
    return {
        "command": command,
        "data_fingerprint": fingerprint,
        "mixer_plugin": {"distribution": entry.distribution, "version": entry.version},
        "versions": {
            "mixerzoo": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers")},
        },
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.")
    return flat


def _text(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "absent"
    return yaml.safe_dump(flat[key], default_flow_style=True).removesuffix("\n...\n").strip()
