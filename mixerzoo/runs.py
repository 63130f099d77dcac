"""The run directory: what a training run leaves behind, and how it is told apart from anything else.

::

    run.json             versions, data fingerprint, command; written first, so it says whose directory this is
    tokenizer.json       and tokenizer_config.json
    recipe.yaml          the resolved recipe; without it the run has not begun
    metrics.jsonl        one line per logged step and per validation
    checkpoints/         what --resume starts from
    config.json  model.safetensors  README.md   the result, ready to load; for transformers,
    modeling_mixerzoo.py  generation_config.json    these beside it
    result.json          final figures; written last, so its presence means "finished"
    run.lock             empty; held while a process trains into the directory
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mixerzoo import __version__
from mixerzoo.data import PreparedData
from mixerzoo.errors import MixerError, RecipeError, RunError
from mixerzoo.model_card import CARD_FILE
from mixerzoo.recipe import Recipe, load_recipe
from mixerzoo.registry import load_registry
from mixerzoo.yaml_text import TextError, from_yaml, one_line

RECIPE_FILE = "recipe.yaml"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
#: Where transformers looks for the token that ends a text.
GENERATION_FILE = "generation_config.json"
CHECKPOINTS = "checkpoints"
LOCK_FILE = "run.lock"
#: The checkpoint that is being written.
INCOMPLETE = ".incomplete"

_COMPLETE = re.compile(r"checkpoint-(\d+)")
#: What ``--overwrite`` removes. First the result, so that what is left of a run never passes for a finished one.
_REMOVED = (
    RESULT_FILE,
    RECIPE_FILE,
    METRICS_FILE,
    "config.json",
    "model.safetensors",
    "modeling_mixerzoo.py",
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    CARD_FILE,
)


class RunDirectory:
    """One run's files.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    @property
    def begun(self) -> bool:
        """Whether the directory holds a run that can be resumed or is finished."""
        return self._ours and (self.path / RECIPE_FILE).exists()

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return (self.path / RESULT_FILE).exists()

    @property
    def _ours(self) -> bool:
        """Whether the directory was made by a run, however far that came."""
        try:
            return "data_fingerprint" in json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return False  # there is none, or it is somebody else's

    @property
    def _empty(self) -> bool:
        # A process that died before its first file leaves these.
        scraps = {LOCK_FILE, _partial(self.path / RUN_FILE).name}
        return not self.path.exists() or (
            self.path.is_dir() and all(entry.name in scraps for entry in self.path.iterdir())
        )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory against other processes; it is made where it is missing.

        The system lets go of the lock when the process ends, however it ends. Where no run begins in the block,
        nothing is left behind.

        Raises:
            RunError: another process holds the directory.
            OSError: it cannot be written.
        """
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise RunError(
                f"another process is training into {self.path}; wait for its end, or choose another directory "
                "with --out"
            ) from error
        try:
            # Better now than after the text has been prepared.
            with tempfile.TemporaryFile(dir=self.path):
                pass
            yield
        finally:
            if not self._ours:
                (self.path / LOCK_FILE).unlink()
                for made in missing:
                    if not any(made.iterdir()):
                        made.rmdir()
            lock.release()

    def start(self, recipe: Recipe, data: PreparedData, command: str, initial: str | None = None) -> None:
        """Begin a new run; of what the directory holds, the files of an earlier run go and all others stay.

        Args:
            recipe: with its vocabulary size.
            data: its fingerprint is recorded and its tokenizer saved.
            command: what started the run.
            initial: fingerprint of the weights that it starts from, if it starts from a checkpoint.
        """
        for name in _REMOVED:
            (self.path / name).unlink(missing_ok=True)
            _partial(self.path / name).unlink(missing_ok=True)
        for _, checkpoint in complete_checkpoints(self.checkpoints):
            shutil.rmtree(checkpoint)
        if (self.checkpoints / INCOMPLETE).exists():
            shutil.rmtree(self.checkpoints / INCOMPLETE)
        # A process that dies from here on leaves a run without a recipe, which begins anew.
        write_atomically(self.path / RUN_FILE, to_json(_provenance(recipe, data.fingerprint, command, initial)))
        data.tokenizer.save(self.path)
        write_atomically(self.path / RECIPE_FILE, recipe.to_yaml())

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a path that a new run must not use.

        Raises:
            RunError: it exists and ``overwrite`` is off, or it exists and does not hold a run.
        """
        if self._empty:
            return
        self._check_ours()
        if not overwrite:
            raise RunError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite, "
                "or choose another directory with --out"
            )

    def check_resumable(self) -> None:
        """Refuse a path that holds nothing to resume.

        Raises:
            RunError: it does not exist, or it holds something else.
        """
        if not self.path.exists():
            raise RunError(f"there is no run to resume: {self.path} does not exist; start one without --resume")
        if not self._empty:
            self._check_ours()

    def _check_ours(self) -> None:
        if not self.path.is_dir():
            raise RunError(f"{self.path} exists and is not a directory; choose another with --out")
        # A recipe.yaml alone may be the user's own.
        if not self._ours:
            raise RunError(
                f"{self.path} exists and does not hold a run (it has no {RUN_FILE} that a run wrote), so it is "
                "left alone; choose another directory with --out"
            )

    def check_mixer(self) -> None:
        """Refuse a run whose mixer is not installed, before its recipe is read.

        Raises:
            RunError: names the plugin that the run was trained with.
        """
        if not self.begun:
            return
        try:
            name = from_yaml((self.path / RECIPE_FILE).read_text(encoding="utf-8"))["mixer"]["name"]
        except (TextError, TypeError, KeyError):
            return  # damaged: `recipe` says how
        try:
            load_registry().get_recorded(name, self._record().get("mixer_plugin"))
        except MixerError as error:
            raise RunError(f"{self.path}: {error}") from error

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
        if self._record().get("data_fingerprint") != fingerprint:
            raise RunError(
                f"{self.path}: the data changed since the run was started (other files, or another Python for "
                "the source 'stdlib'), so its text and its tokenizer are no longer the run's"
            )

    def check_initial(self, fingerprint: str | None) -> None:
        """Refuse to begin anew from other weights than the run's own.

        Raises:
            RunError: the checkpoint of the recipe's ``model.init_from`` changed.
        """
        if self._record().get("initial_weights") != fingerprint:
            raise RunError(f"{self.path}: the weights of model.init_from changed since the run was started")

    def _record(self) -> dict[str, Any]:
        path = self.path / RUN_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}") from error
        if not isinstance(record, dict):
            raise RunError(f"{path}: damaged: expected a JSON object")
        return record

    def recipe(self) -> Recipe:
        """The resolved recipe of the run.

        Raises:
            RunError: the directory holds no run, or its mixer is not installed.
        """
        path = self.path / RECIPE_FILE
        if not path.exists():
            if not self.path.is_dir():
                raise RunError(f"{self.path}: no such directory")
            raise RunError(f"{self.path} holds no run: it has no {RECIPE_FILE}")
        self.check_mixer()
        try:
            return load_recipe(path)
        except RecipeError as error:
            raise RunError(f"the run's own recipe cannot be read:\n{error}") from error

    def finished_recipe(self) -> Recipe:
        """The resolved recipe of a run that went to its end.

        Raises:
            RunError: as `recipe`, or the run is not finished.
        """
        recipe = self.recipe()
        if not self.finished:
            raise RunError(f"{self.path} holds a run that is not finished; continue it with mixerzoo train … --resume")
        return recipe

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        path = self.path / METRICS_FILE
        with _named(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line), allow_nan=False) + "\n")

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


def home_of(checkpoint: Path) -> Path:
    """The directory with a checkpoint's tokenizer and recipe: the checkpoints within a run share the run's."""
    whole = checkpoint.resolve()
    shared = whole.parent.name == CHECKPOINTS and not (checkpoint / "tokenizer.json").exists()
    return whole.parent.parent if shared else checkpoint


def to_json(content: Any) -> str:
    """Indented JSON with a final newline; a number that is not finite, for which JSON has no word, is null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either the old one or the whole new one, whenever the process dies."""
    with _named(path):
        _partial(path).write_text(text, encoding="utf-8")
    os.replace(_partial(path), path)


def complete_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint, oldest first.

    Args:
        directory: the ``checkpoints`` of a run.
    """
    if not directory.is_dir():
        return []
    matches = [(match, path) for path in directory.iterdir() if (match := _COMPLETE.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system does not say which file a full disk has no room for."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite, for which JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value


def _provenance(recipe: Recipe, fingerprint: str, command: str, initial: str | None) -> dict[str, Any]:
    entry = load_registry().get(recipe.mixer.name)
    return {
        "command": command,
        "data_fingerprint": fingerprint,
        **({} if initial is None else {"initial_weights": initial}),
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
    return one_line(flat[key])
