"""A comparison from its first run to its report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixerzoo.data import PreparedData, prepare
from mixerzoo.describe import Description, describe
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell, Comparison, Values, Variant
from mixerzoo.experiments.learned import look
from mixerzoo.experiments.results import Findings, collect
from mixerzoo.experiments.runner import Watcher, Workers, run_cells
from mixerzoo.experiments.statistics import check_installed
from mixerzoo.experiments.tuning import Tuning, choose
from mixerzoo.experiments.writing import write_reports
from mixerzoo.recipe import Recipe, tokens_of_run
from mixerzoo.training import Reporter, check_trackers

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
        devices: ``cpu``, ``cuda:0``…, taken in turn; default: what `mixerzoo train` takes.
        command: what started it, for the records.
        watcher: hears of the runs.
        reporter: hears of the preparation of text.

    Returns:
        The content of ``results.json``.

    Raises:
        RunError: the directory is in the way, in use, or holds a comparison of another recipe or other data; or the
            disk is full.
        DataError: the text is missing or too little.
        MixerzooError: what the statistics need, or a tracker, is not installed.
        OSError: a file cannot be written.
    """
    check_installed()
    for recipe in comparison.variants.values():
        check_trackers(recipe)
    place = ComparisonDirectory(Path(directory).resolve())
    place.check(comparison)
    texts = _Texts(reporter or Reporter())
    fingerprints = {texts.name(recipe): texts.of(recipe).fingerprint for recipe in comparison.variants.values()}
    with place.claimed(comparison):
        chosen = place.begin(comparison, fingerprints, threads, default_threads(jobs))
        work = _Work(comparison, place, Workers(jobs, chosen, devices, command), watcher, texts)
        try:
            work.run()
        finally:
            found = collect(work.findings())
            write_reports(found, place.path)
    return found


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
    cells: list[Cell] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    described: dict[Variant, Description] = field(default_factory=dict)

    def run(self) -> None:
        """Measure, tune, compare, as far as each is asked for."""
        comparison = self.comparison
        for variant, recipe in comparison.variants.items():
            self.described[variant] = describe(self.texts.whole(recipe))
        seconds = self._measure() if comparison.equal == "seconds" else {}
        steps = {variant: self._steps(variant, seconds) for variant in comparison.variants}
        chosen = {
            (contender.label, setting): comparison.variants_of(contender.label, setting)[0]
            for contender in comparison.contenders
            for setting in comparison.settings
        }
        if comparison.tune:
            trials = [
                Cell.of(variant, comparison.variants[variant], seed, steps[variant], "tune")
                for seed in comparison.tuning_seeds
                for variant in comparison.variants
                if steps[variant] != 0
            ]
            self._run(trials, self.workers)
            self.tunings = [choose(comparison, self.place, *key, trials) for key in chosen]
            chosen = {(each.label, each.setting): each.chosen for each in self.tunings if each.chosen is not None}
        self.cells = [
            Cell.of(chosen[key], comparison.variants[chosen[key]], seed, steps[chosen[key]])
            for seed in comparison.seeds
            for key in chosen
            if steps[chosen[key]] != 0
        ]
        self._run(self.cells, self.workers)
        for key in chosen:
            own = [cell for cell in self.cells if (cell.variant.label, cell.variant.setting) == key]
            look(self.place, own, self.workers.threads)

    def _run(self, cells: list[Cell], workers: Workers) -> None:
        for cell in cells:
            self.place.check_cell(cell, self.texts.of(cell.recipe).fingerprint)
        self.failed.update(run_cells(cells, self.place, workers, self.watcher))

    def _measure(self) -> dict[tuple[str, Values], float]:
        """Seconds of a step of each mixer in each setting, measured one at a time."""
        cells = []
        for contender in self.comparison.contenders:
            for setting in self.comparison.settings:
                variant = self.comparison.variants_of(contender.label, setting)[0]
                recipe = self.comparison.variants[variant]
                steps = min(SPEED_STEPS, recipe.train.steps)
                cells.append(Cell.of(variant, recipe, self.comparison.seeds[0], steps, "speed"))
        alone = Workers(1, self.workers.threads, self.workers.devices[:1], self.workers.command)
        self._run(cells, alone)
        return dict(self._speeds(cells))

    def _speeds(self, cells: list[Cell]) -> Iterator[tuple[tuple[str, Values], float]]:
        for cell in cells:
            run = self.place.run(cell)
            if run.finished and (speed := run.result()["tokens_per_second"]):
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
