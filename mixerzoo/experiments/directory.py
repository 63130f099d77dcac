"""The directory of a comparison: whose it is, what it was begun with, and the runs in it.

::

    comparison.json   what was begun: the recipe without mixer and seed, data, threads, device; written first
    cells/            run directories; beside each NAME its recipe NAME.yaml and what it printed NAME.log
    results.json  results.csv  report.md  report.html    written whenever the comparison ends, or is interrupted
    compare.lock      empty; held while a comparison is at work
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixerzoo import files
from mixerzoo.errors import RunError
from mixerzoo.experiments.grid import Cell, Comparison
from mixerzoo.files import read_object, to_json
from mixerzoo.recipe import Recipe
from mixerzoo.runs import RunDirectory

RECORD_FILE = "comparison.json"
LOCK_FILE = "compare.lock"
CELLS = "cells"


class ComparisonDirectory:
    """A comparison's files.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, cell: Cell) -> RunDirectory:
        """The run of a cell, begun or not."""
        return RunDirectory(self.path / cell.place)

    def name_of(self, cell: Cell) -> str:
        """What trackers call a cell's run: unlike all others of the comparison, and told apart from other ones'."""
        return f"{self.path.name}/{cell.place.relative_to(CELLS).as_posix()}"

    def beside(self, cell: Cell, suffix: str) -> Path:
        """A file beside a cell's run directory: ``".yaml"`` or ``".log"``."""
        place = self.path / cell.place
        return place.with_name(place.name + suffix)

    def check(self, comparison: Comparison) -> None:
        """Refuse a directory that holds something else.

        Raises:
            RunError: it holds no comparison, or one of another recipe (says where they differ).
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} exists and is not a directory; choose another with --out")
        if not (self.path / RECORD_FILE).exists():
            rest = [entry.name for entry in self.path.iterdir() if entry.name != LOCK_FILE]
            if [name for name in rest if not name.startswith(f".{RECORD_FILE}.")]:
                raise RunError(f"{self.path} exists and holds no comparison, so it is left alone; choose another --out")
            return
        before, now = self.record().get("recipe"), _base(comparison.recipe, comparison)
        changed = sorted(_differing(before, now, ""))
        if changed:
            raise RunError(
                f"{self.path} holds a comparison of another recipe, and runs that differ in more than the grid do not "
                f"compare; choose another --out. They differ in: {', '.join(changed)}"
            )

    def record(self) -> dict[str, Any]:
        """What ``comparison.json`` holds; nothing where there is none.

        Raises:
            RunError: it cannot be read.
        """
        if not (self.path / RECORD_FILE).exists():
            return {}
        return read_object(self.path / RECORD_FILE, RunError, "restore it, or compare into another directory")

    @contextmanager
    def claimed(self, comparison: Comparison) -> Iterator[None]:
        """Hold the directory against other comparisons; it is made where it is missing.

        Raises:
            RunError: another process holds it, or as `check`.
            OSError: it cannot be written.
        """
        self.check(comparison)
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise RunError(f"another process is comparing in {self.path}; wait for its end, or choose --out") from error
        try:
            self.check(comparison)
            yield
        finally:
            lock.release()

    def begin(
        self,
        comparison: Comparison,
        fingerprints: Mapping[str, str],
        threads: int | None,
        default_threads: int,
        device: str,
    ) -> int:
        """Record what is begun, or hold what goes on against what was begun.

        Args:
            comparison: what is asked for.
            fingerprints: of all its texts, by what names each.
            threads: of each run, asked for; None: what was recorded, else the default.
            default_threads: of a comparison that begins.
            device: of which kind they are: ``cpu`` or ``cuda``.

        Returns:
            Threads of each run.

        Raises:
            RunError: a text changed, or the threads or the kind of device did.
        """
        record = self.record()
        known = record.get("data", {})
        for name, fingerprint in fingerprints.items():
            if known.get(name, fingerprint) != fingerprint:
                raise RunError(
                    f"{self.path}: the data changed since the comparison was begun (other files, or another Python for "
                    "the source 'stdlib'); runs on different text do not compare: choose another --out"
                )
        began = record.get("threads")
        if began is not None and threads not in (None, began):
            raise RunError(
                f"{self.path} was begun with {began} threads a run, and with {threads} the same run gives other bits; "
                f"say --threads {began}, or choose another --out"
            )
        # Older directories do not say.
        trained_on = record.get("device", device)
        if trained_on != device:
            raise RunError(
                f"{self.path} was begun on {trained_on}, and on {device} the same run gives other bits; "
                f"say --device {trained_on}, or choose another --out"
            )
        chosen = int(began or threads or default_threads)
        record = {
            "recipe": _base(comparison.recipe, comparison),
            "data": {**known, **fingerprints},
            "threads": chosen,
            "device": device,
        }
        files.write_text(self.path / RECORD_FILE, to_json(record))
        return chosen

    def check_cell(self, cell: Cell, fingerprint: str) -> None:
        """Refuse a run that is not what the cell says.

        Raises:
            RunError: its recipe or its data differ.
        """
        run = self.run(cell)
        if run.begun:
            size = run.recipe().model.vocab_size
            run.check_same(cell.recipe if size is None else cell.recipe.with_vocab_size(size), fingerprint)


def _base(recipe: Recipe, comparison: Comparison) -> dict[str, Any]:
    """The recipe without what the cells differ in."""
    base = recipe.model_dump(mode="json", exclude={"mixer": True, "seed": True, "train": {"trackers"}})
    for key in (*comparison.vary, *comparison.tune):
        inner: Any = base
        *parents, last = key.split(".")
        for part in parents:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.pop(last, None)
    return base


def _differing(before: Any, now: Any, prefix: str) -> Iterator[str]:
    """Keys in which two recipes differ; one that only either of them has is varied there."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        if before != now:
            yield prefix or "all of it"
        return
    for key in before.keys() & now.keys():
        yield from _differing(before[key], now[key], f"{prefix}.{key}" if prefix else key)
