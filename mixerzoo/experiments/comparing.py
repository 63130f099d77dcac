"""A comparison from its first run to its report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixerzoo.data import PreparedData, prepare
from mixerzoo.describe import Description, describe
from mixerzoo.experiments.devices import kind_of
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell, Comparison, Values, Variant
from mixerzoo.experiments.learned import look
from mixerzoo.experiments.results import Findings, collect
from mixerzoo.experiments.runner import Watcher, Workers, run_cells
from mixerzoo.experiments.statistics import check_installed
from mixerzoo.experiments.tuning import Tuning, choose
from mixerzoo.experiments.writing import write_reports
from mixerzoo.model import default_device
from mixerzoo.recipe import Recipe, tokens_of_run
from mixerzoo.training import Reporter, check_trainable

#: Steps by which the speed of a mixer is measured.
SPEED_STEPS = 40


def compare(
    comparison: Comparison,
    directory: str | Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    devices: tuple[str, ...] = (),
    command: str = "",
    watcher: Watcher,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run what is not finished of a comparison, and write its report.

    Args:
        comparison: from `read_comparison`.
        directory: of the comparison, begun or not.
        jobs: runs at a time.
        threads: of each run; default: those that the comparison was begun with, else the cores shared among the jobs.
        devices: from `find_devices`, taken in turn; default: what `mixerzoo train` takes.
        command: what started it, for the records.
        watcher: hears of the runs.
        reporter: hears of the preparation of text.

    Returns:
        The content of ``results.json``.

    Raises:
        RunError: the directory is in the way, in use, or holds a comparison of another recipe, other data, other
            threads or another kind of device; or the disk is full.
        DataError: the text is missing or too little.
        MixerzooError: what the statistics need, a tracker or an optimiser is not installed, or an attention backend
            cannot train here.
        OSError: a file cannot be written.
    """
    check_installed()
    device = devices[0] if devices else default_device()
    for recipe in comparison.variants.values():
        check_trainable(recipe, device)
    place = ComparisonDirectory(Path(directory).resolve())
    place.check(comparison)
    reporter = reporter or Reporter()
    texts = _Texts(reporter)
    fingerprints = {texts.name(recipe): texts.of(recipe).fingerprint for recipe in comparison.variants.values()}
    with place.claimed(comparison):
        chosen = place.begin(comparison, fingerprints, threads, default_threads(jobs), kind_of(device))
        work = _Work(comparison, place, Workers(jobs, chosen, devices, command), watcher, texts)
        work.begin()
        try:
            work.run()
        except BaseException:
            _report_beside_an_error(work, reporter)
            raise
        return work.report()


def _report_beside_an_error(work: _Work, reporter: Reporter) -> None:
    try:
        work.report()
    except Exception as error:  # noqa: BLE001  raised, it would hide what ended the comparison; it is said beside that
        reporter.notice(f"the report could not be written: {error}")


def default_threads(jobs: int) -> int:
    """Threads of each of so many runs at a time: the cores, shared."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


class _Texts:
    """The texts of a comparison, each prepared once."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._found: dict[str, PreparedData] = {}

    def name(self, recipe: Recipe) -> str:
        """What tells a text and its tokens from others."""
        text = json.dumps(recipe.data.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of(self, recipe: Recipe) -> PreparedData:
        """The text of a recipe."""
        name = self.name(recipe)
        if name not in self._found:
            self._found[name] = prepare(recipe.data, progress=self._reporter.data)
        return self._found[name]

    def whole(self, recipe: Recipe) -> Recipe:
        """The recipe with the vocabulary size of its text."""
        return recipe.with_vocab_size(recipe.data.vocab_size or self.of(recipe).tokenizer.vocab_size)


@dataclass
class _Work:
    """One call of `compare`."""

    comparison: Comparison
    place: ComparisonDirectory
    workers: Workers
    watcher: Watcher
    texts: _Texts
    failed: dict[Cell, str] = field(default_factory=dict)
    checked: set[Cell] = field(default_factory=set)
    trials: list[Cell] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    described: dict[Variant, Description] = field(default_factory=dict)

    def begin(self) -> None:
        """Find what is finished, which is reported whatever happens later.

        Raises:
            RunError: a run is not what the grid says, so that there is nothing to report.
        """
        for variant, recipe in self.comparison.variants.items():
            self.described[variant] = describe(self.texts.whole(recipe))
        self._gather()

    def run(self) -> None:
        """Measure, tune, compare, as far as each is asked for."""
        if self.comparison.equal == "seconds":
            workers = self.workers
            alone = Workers(1, workers.threads, workers.devices[:1], workers.command)
            self._run(self._speed_cells(), alone)
            self._gather()
        if self.comparison.tune:
            self._run(self.trials, self.workers)
            self._gather()
        self._run(self.cells, self.workers)
        for key in self.comparison.keys:
            own = [cell for cell in self.cells if (cell.variant.label, cell.variant.setting) == key]
            look(self.place, own, self.workers.threads)

    def report(self) -> dict[str, Any]:
        """Write what is known, and return it."""
        found = collect(self.findings())
        write_reports(found, self.place.path)
        return found

    def _gather(self) -> None:
        """The runs, by what is known so far of speeds and of tuning."""
        comparison = self.comparison
        seconds = dict(self._speeds()) if comparison.equal == "seconds" else {}
        steps = {variant: self._steps(variant, seconds) for variant in comparison.variants}
        chosen = {key: comparison.variants_of(*key)[0] for key in comparison.keys}
        if comparison.tune:
            self.trials = self._checked(
                Cell.of(variant, comparison.variants[variant], seed, steps[variant], "tune")
                for seed in comparison.tuning_seeds
                for variant in comparison.variants
                if steps[variant] != 0
            )
            self.tunings = [choose(comparison, self.place, *key, self.trials) for key in comparison.keys]
            chosen = {(each.label, each.setting): each.chosen for each in self.tunings if each.chosen is not None}
        self.cells = self._checked(
            Cell.of(variant, comparison.variants[variant], seed, steps[variant])
            for seed in comparison.seeds
            for variant in chosen.values()
            if steps[variant] != 0
        )

    def _checked(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells, none of which is another run than the one in the directory."""
        found = list(cells)
        for cell in found:
            if cell not in self.checked:
                self.place.check_cell(cell, self.texts.of(cell.recipe).fingerprint)
        self.checked.update(found)
        return found

    def _run(self, cells: list[Cell], workers: Workers) -> None:
        run_cells(cells, self.place, workers, self.watcher, self.failed)

    def _speed_cells(self) -> list[Cell]:
        """Runs that measure the seconds of a step of each mixer in each setting, one at a time."""
        cells = []
        for key in self.comparison.keys:
            variant = self.comparison.variants_of(*key)[0]
            recipe = self.comparison.variants[variant]
            steps = min(SPEED_STEPS, recipe.train.steps)
            cells.append(Cell.of(variant, recipe, self.comparison.seeds[0], steps, "speed"))
        return self._checked(cells)

    def _speeds(self) -> Iterator[tuple[tuple[str, Values], float]]:
        """Seconds of a step of each mixer in each setting that are measured."""
        for cell in self._speed_cells():
            run = self.place.run(cell)
            if not run.finished:
                continue
            if not (speed := run.result()["tokens_per_second"]):
                self.failed[cell] = (
                    f"train.steps {cell.recipe.train.steps}: too few to say how fast a step is, as the first set up or "
                    "compile; raise it, or make equal steps or flops"
                )
            else:
                tokens = tokens_of_run(cell.recipe) / cell.recipe.train.steps
                yield (cell.variant.label, cell.variant.setting), tokens / speed

    def _steps(self, variant: Variant, seconds: Mapping[tuple[str, Values], float]) -> int | None:
        """How many steps a variant takes; None: the recipe's own number; 0: it could not be measured."""
        comparison = self.comparison
        first = comparison.variants_of(comparison.baseline, variant.setting)[0]
        if comparison.equal == "steps" or variant.label == comparison.baseline:
            return None
        steps = comparison.variants[first].train.steps
        if comparison.equal == "flops":
            return max(1, round(steps * self._flops(first) / self._flops(variant)))
        own, base = (seconds.get((label, variant.setting)) for label in (variant.label, comparison.baseline))
        return 0 if own is None or base is None else max(1, round(steps * base / own))

    def _flops(self, variant: Variant) -> int:
        """Of a step."""
        found = self.described[variant]
        return found.costs.flops_per_token * found.training.tokens_per_step

    def findings(self) -> Findings:
        """What there is to report, at any moment."""
        return Findings(
            self.comparison, self.place, self.workers, self.cells, self.failed, self.tunings, self.described
        )
