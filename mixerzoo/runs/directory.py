"""The run directory: how it is told apart from anything else, begun, gone on with and finished."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixerzoo import files
from mixerzoo.checkpoints import CARD_FILE
from mixerzoo.data import PreparedData
from mixerzoo.data.chat_template import TEMPLATE_FOLDER
from mixerzoo.errors import MixerError, RecipeError, RunError
from mixerzoo.files import read_object, to_json, write_manifest
from mixerzoo.mixer import load_registry, recorded_entry
from mixerzoo.recipe import Recipe, load_recipe
from mixerzoo.runs.checkpoints import complete_checkpoints, remove_all, remove_leftovers
from mixerzoo.runs.layout import (
    CHECKPOINTS,
    LOCK_FILE,
    RECIPE_FILE,
    REMOVED,
    RESULT_FILE,
    RESULT_FILES,
    RUN_FILE,
    TENSORBOARD,
    TOKENIZER_FILES,
    UNFINISHED,
)
from mixerzoo.runs.log import METRICS_FILE, RunLog
from mixerzoo.runs.records import LENGTH, differences, provenance
from mixerzoo.runs.text_format import home_of, save_format
from mixerzoo.yaml_text import TextError, from_yaml


class RunDirectory:
    """One run's files.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.metrics = RunLog(path)

    @property
    def begun(self) -> bool:
        """Whether the directory holds a run that can be resumed or is finished."""
        return self._ours and (self.path / RECIPE_FILE).exists()

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return (self.path / RESULT_FILE).exists()

    @property
    def run_id(self) -> str:
        """What tells the run from every other.

        Raises:
            RunError: the run's records cannot be read.
        """
        return str(self._record().get("run_id"))

    @property
    def _ours(self) -> bool:
        """Whether the directory was made by a run, however far that came."""
        try:
            return "data_fingerprint" in json.loads((self.path / RUN_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
            return False  # there is none, or it is somebody else's

    @property
    def _empty(self) -> bool:
        """Whether there is nothing but what a process leaves that ended before its first file was whole."""
        if not self.path.is_dir():
            return not self.path.exists()
        scraps = {LOCK_FILE, *(path.name for path in self._leftovers())}
        return all(
            entry.name in scraps or (entry.name == RUN_FILE and entry.is_file() and _blank(entry))
            for entry in self.path.iterdir()
        )

    def _leftovers(self) -> list[Path]:
        found = [path for path, name in files.unfinished_in(self.path) if name in UNFINISHED]
        older = [self.path / f".{name}.partial" for name in sorted(UNFINISHED)]  # as an earlier version named them
        return found + [path for path in older if path.exists()]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the directory against other processes; it is made where it is missing.

        What an earlier process left unfinished is removed. The system lets go of the lock when the process ends,
        however it ends. Where no run begins in the block, nothing is left behind.

        Raises:
            RunError: another process holds the directory.
            OSError: it cannot be written.
        """
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for made in missing:
            files.sync(made.parent)
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
            for path in self._leftovers():
                files.remove(path)
            remove_leftovers(self.checkpoints)
            yield
        finally:
            if self.path.is_dir() and not self._ours:
                (self.path / LOCK_FILE).unlink(missing_ok=True)
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
        record = to_json(provenance(recipe, data, command, initial))
        (self.path / RESULT_FILE).unlink(missing_ok=True)
        remove_all(self.checkpoints)
        for name in REMOVED:
            (self.path / name).unlink(missing_ok=True)
        for left in (
            *(self.path / TENSORBOARD).glob("events.out.tfevents.*"),
            *(self.path / TEMPLATE_FOLDER).glob("*.jinja"),
        ):
            left.unlink()
        files.sync(self.path)
        # A process that dies from here on leaves a run without a recipe, which begins anew.
        files.write_text(self.path / RUN_FILE, record)
        save_format(self.path, recipe, data)
        files.write_text(self.path / RECIPE_FILE, recipe.to_yaml())
        self._seal()

    def go_on(self, recipe: Recipe, data: PreparedData, checkpoint: Path | None) -> list[str]:
        """Make the directory that of an unfinished run again, as it was when a checkpoint was taken.

        Args:
            recipe: the run's, or one of more steps.
            data: the run's.
            checkpoint: what training goes on from; None: the beginning.

        Returns:
            What was put right, for the user.
        """
        (self.path / RESULT_FILE).unlink(missing_ok=True)
        files.sync(self.path)
        if (self.path / RECIPE_FILE).read_bytes() != recipe.to_yaml().encode("utf-8"):
            files.write_text(self.path / RECIPE_FILE, recipe.to_yaml())
        mended = save_format(self.path, recipe, data)
        self._seal()
        self.metrics.restore(checkpoint)
        return [f"{self.path / name} was not the run's tokenizer, and is written again" for name in mended]

    def _seal(self, *results: str, coming: Mapping[str, str] | None = None) -> None:
        names = [RECIPE_FILE, *TOKENIZER_FILES, *results]
        write_manifest(self.path, names, coming=coming or {}, run=self.run_id)

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
            RunError: it does not exist, it holds something else, or a run that lost its recipe.
        """
        if not self.path.exists():
            raise RunError(f"there is no run to resume: {self.path} does not exist; start one without --resume")
        if self._empty:
            return
        self._check_ours()
        if not self.begun and (self.finished or complete_checkpoints(self.checkpoints)):
            raise RunError(
                f"{self.path} holds what a run trained, but not its {RECIPE_FILE}, which says what that is; restore "
                "the file, or begin anew with --overwrite"
            )

    def _check_ours(self) -> None:
        if not self.path.is_dir():
            raise RunError(f"{self.path} exists and is not a directory; choose another with --out")
        # A recipe.yaml alone may be the user's own.
        if not self._ours:
            raise RunError(
                f"{self.path} exists and does not hold a run (it has no {RUN_FILE} that a run wrote), so it is "
                "left alone; choose another directory with --out"
            )

    def require_mixer(self) -> None:
        """Refuse a run whose mixer is not installed, before its recipe is read.

        Raises:
            RunError: names the plugin that the run was trained with.
        """
        if not self.begun:
            return
        try:
            name = from_yaml((self.path / RECIPE_FILE).read_text(encoding="utf-8"))["mixer"]["name"]
        except (TextError, ValueError, TypeError, KeyError):
            return  # damaged: `recipe` says how
        if not isinstance(name, str):
            return
        try:
            recorded_entry(load_registry(), name, self._record().get("mixer_plugin"))
        except MixerError as error:
            raise RunError(f"{self.path}: {error}") from error

    def lengthens(self, recipe: Recipe) -> bool:
        """Whether a recipe is the run's but for more steps.

        Raises:
            RunError: as `recipe`.
        """
        saved = self.recipe()
        return recipe.train.steps > saved.train.steps and differences(recipe, saved).keys() <= LENGTH

    def check_same(self, recipe: Recipe, fingerprint: str, free: Collection[str] = ()) -> None:
        """Refuse to resume anything but the run that the directory holds.

        Args:
            recipe: as given now.
            fingerprint: of its data.
            free: keys in which the recipe may differ.

        Raises:
            RunError: there is no run, its recipe differs (says where), or its data changed.
        """
        saved = self.recipe()
        found = differences(recipe, saved)
        differing = found.keys() - free
        if differing:
            hint = ""
            if "train.steps" in differing and recipe.train.steps < saved.train.steps:
                hint = "\ntrain.steps can only grow"
            elif "train.steps" in differing:
                # Another batch alone might do, so that it is among what is to be given up.
                differing = set(found)
                hint = "\nmore train.steps are taken where nothing else differs but train.warmup_fraction"
            lines = [f"  {key}: {how}" for key, how in found.items() if key in differing]
            raise RunError(
                f"{self.path} was started with another recipe (its {RECIPE_FILE}), so it cannot be resumed with this "
                "one:\n" + "\n".join(lines) + hint
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
                f"the source 'stdlib'), so its text and its tokenizer are no longer those of its {RUN_FILE}"
            )

    def check_initial(self, fingerprint: str | None) -> None:
        """Refuse to begin anew from other weights than the run's own.

        Raises:
            RunError: the checkpoint of the recipe's ``model.init_from`` changed.
        """
        if self._record().get("initial_weights") != fingerprint:
            raise RunError(
                f"{self.path}: the weights of model.init_from changed since the run was started (by its {RUN_FILE})"
            )

    def check_there(self) -> None:
        """Refuse to write into a directory that was removed while training.

        Raises:
            RunError: its records are gone.
        """
        if not (self.path / RUN_FILE).exists():
            raise RunError(
                f"{self.path / RUN_FILE} is gone: the run directory was removed or replaced while the run was at work"
            )

    def _record(self) -> dict[str, Any]:
        return read_object(self.path / RUN_FILE, RunError, "restore it, or begin anew in another directory")

    def recipe(self) -> Recipe:
        """The resolved recipe of the run.

        Raises:
            RunError: the directory holds no run, or its mixer is not installed.
        """
        path = self.path / RECIPE_FILE
        if not path.exists():
            if not self.path.is_dir():
                raise RunError(f"{self.path}: no such directory")
            home = home_of(self.path)
            within = "" if home == self.path else f"; it is a checkpoint of {home}, and takes a text of your own"
            raise RunError(f"{self.path} holds no run: it has no {RECIPE_FILE}{within}")
        self.require_mixer()
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
            whole = [path for _, path in complete_checkpoints(self.checkpoints) if (path / RESULT_FILES[1]).exists()]
            until = f"; until then its checkpoint {whole[-1]} can be given, and a text of your own" if whole else ""
            raise RunError(
                f"{self.path} holds a run that is not finished; continue it with mixerzoo train … --resume{until}"
            )
        return recipe

    def result(self) -> dict[str, Any]:
        """The final figures of a finished run.

        Raises:
            RunError: they cannot be read.
        """
        advice = "remove it and --resume writes it again"
        return read_object(self.path / RESULT_FILE, RunError, advice)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the final figures, which marks the run as finished.

        What the directory holds is brought to the disk first.
        """
        text = to_json(result)
        for name in (*RESULT_FILES, CARD_FILE, METRICS_FILE):
            if (self.path / name).is_file():
                files.sync(self.path / name)
        files.sync(self.path)
        self._seal(*RESULT_FILES, coming={RESULT_FILE: text})
        files.write_text(self.path / RESULT_FILE, text)


def _blank(path: Path) -> bool:
    """Whether a file has no content; after a power cut some file systems give back zeros."""
    return os.path.getsize(path) < 1 << 20 and not path.read_bytes().strip(b"\0")
