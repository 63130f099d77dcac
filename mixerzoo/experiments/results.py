"""What a comparison found, as plain values: the content of ``results.json``."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from mixerzoo.describe import Description
from mixerzoo.experiments.curves import curve
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell, Comparison, Values, Variant
from mixerzoo.experiments.learned import learned
from mixerzoo.experiments.runner import Workers
from mixerzoo.experiments.statistics import LEVEL, differences, estimate, frontier
from mixerzoo.experiments.tuning import Tuning
from mixerzoo.recipe import FORWARDS_PER_STEP
from mixerzoo.version import __version__
from mixerzoo.yaml_text import from_yaml

#: Figures of ``result.json`` that runs of one mixer share.
_SHARED = ("parameters", "mixer_parameters", "kv_bytes_per_token", "in_flight_bytes_per_token", "steps", "tokens")
#: Those whose mean over seeds is told. An older run may lack one; then it is null.
_MEANS = ("tokens_per_second", "train_seconds", "train_flops", "mfu")
_LARGEST = ("peak_memory_bytes",)


@dataclass(frozen=True)
class Findings:
    """What there is to report.

    Attributes:
        comparison: what was asked for.
        directory: holds the runs.
        workers: what they ran on.
        cells: those that are compared.
        failed: cell → error.
        tunings: how values were chosen.
        described: what each variant costs.
    """

    comparison: Comparison
    directory: ComparisonDirectory
    workers: Workers
    cells: Sequence[Cell]
    failed: Mapping[Cell, str]
    tunings: Sequence[Tuning]
    described: Mapping[Variant, Description]


def collect(findings: Findings) -> dict[str, Any]:
    """Everything that is known, finished or not.

    Args:
        findings: what there is.
    """
    comparison = findings.comparison
    names = ("torch", "transformers", "accelerate", "tokenizers", "scipy")
    wrong = [
        {"directory": cell.place.as_posix(), "title": cell.title, "error": error}
        for cell, error in findings.failed.items()
    ]
    return {
        "format": 1,
        "source": comparison.source,
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "tuning_seeds": list(comparison.tuning_seeds),
        "equal": comparison.equal,
        "level": LEVEL,
        "finished": sum(findings.directory.run(cell).finished for cell in findings.cells),
        "runs": len(comparison.contenders) * len(comparison.settings) * len(comparison.seeds),
        "failures": wrong,
        "settings": [_setting(findings, setting) for setting in comparison.settings],
        "tuning": [_tuning(findings, tuning) for tuning in findings.tunings],
        "recipes": {contender.label: _recipe(findings, contender.label) for contender in comparison.contenders},
        "command": findings.workers.command,
        "threads": findings.workers.threads,
        "versions": {
            "mixerzoo": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in names},
        },
        "platform": platform.platform(),
    }


def _values(values: Values) -> dict[str, Any]:
    return {key: from_yaml(text) for key, text in values}


def _recipe(findings: Findings, label: str) -> str:
    """The recipe of a mixer's runs, as YAML; in the first setting, with the first seed."""
    cells = [cell for cell in findings.cells if cell.variant.label == label]
    recipes = [recipe for variant, recipe in findings.comparison.variants.items() if variant.label == label]
    return (cells[0].recipe if cells else recipes[0]).to_yaml()


def _setting(findings: Findings, setting: Values) -> dict[str, Any]:
    comparison = findings.comparison
    mixers = [_mixer(findings, contender.label, setting) for contender in comparison.contenders]
    bits = {
        row["label"]: {run["seed"]: run["result"]["bits_per_byte"] for run in row["runs"] if run["result"]}
        for row in mixers
    }
    found = differences(bits, comparison.baseline)
    for row in mixers:
        label = row["label"]
        row["bits_per_byte"] = asdict(estimate(list(bits[label].values()))) if bits[label] else None
        row["difference"] = asdict(found[label]) if label in found else None
    mean = {row["label"]: row["bits_per_byte"]["mean"] if row["bits_per_byte"] else None for row in mixers}
    on = {
        kind: frontier({row["label"]: (row[key], mean[row["label"]]) for row in mixers})
        for kind, key in (("cache", "cache_bytes"), ("seconds", "train_seconds"))
    }
    for row in mixers:
        row["on_frontier"] = {kind: row["label"] in labels for kind, labels in on.items()}
    yardsticks: dict[str, Any] = next((run["result"] for row in mixers for run in row["runs"] if run["result"]), {})
    return {
        "vary": _values(setting),
        "bigram_bits_per_byte": yardsticks.get("bigram_bits_per_byte"),
        "xz_bits_per_byte": yardsticks.get("xz_bits_per_byte"),
        "mixers": mixers,
    }


def _mixer(findings: Findings, label: str, setting: Values) -> dict[str, Any]:
    comparison = findings.comparison
    contender = next(each for each in comparison.contenders if each.label == label)
    cells = [cell for cell in findings.cells if (cell.variant.label, cell.variant.setting) == (label, setting)]
    variant = cells[0].variant if cells else comparison.variants_of(label, setting)[0]
    runs = [_run(findings, cell) for cell in cells]
    results = [run["result"] for run in runs if run["result"]]
    described = findings.described.get(variant)
    costs = None if described is None else described.costs
    row: dict[str, Any] = {
        "label": label,
        "mixer": contender.choice,
        "tuned": _values(variant.tuned) if cells else {},
        "runs": runs,
        **{key: next((result[key] for result in results if key in result), None) for key in _SHARED},
        **{key: _mean([result.get(key) for result in results]) for key in _MEANS},
        **{key: max((r[key] for r in results if r.get(key) is not None), default=None) for key in _LARGEST},
        "cache_bytes": None if costs is None else costs.cache_bytes,
        "flops_per_token": None if costs is None else costs.flops_per_token,
        "picture": None if described is None else described.picture,
        "weights": learned(findings.directory, cells),
    }
    if costs is not None:
        # The decoder's own account, the same as that of its runs.
        row["parameters"], row["mixer_parameters"] = costs.parameters, costs.mixer_parameters
    finished = [findings.directory.run(cell).path for cell in cells if findings.directory.run(cell).finished]
    flops = None if costs is None else FORWARDS_PER_STEP * costs.flops_per_token
    row["curve"] = curve(finished, tokens_per_step=_tokens_per_step(cells), flops_per_token=flops) if finished else []
    return row


def _tokens_per_step(cells: Sequence[Cell]) -> int:
    train, data = cells[0].recipe.train, cells[0].recipe.data
    return train.batch_size * train.accumulation * data.sequence_length


def _run(findings: Findings, cell: Cell) -> dict[str, Any]:
    run = findings.directory.run(cell)
    error = findings.failed.get(cell)
    status = "finished" if run.finished else "failed" if error is not None else "unfinished"
    return {
        "seed": cell.seed,
        "directory": cell.place.as_posix(),
        "status": status,
        "error": error,
        "result": run.result() if run.finished else None,
    }


def _tuning(findings: Findings, tuning: Tuning) -> dict[str, Any]:
    return {
        "label": tuning.label,
        "vary": _values(tuning.setting),
        "trials": [{"values": _values(variant.tuned), "bits_per_byte": bits} for variant, bits in tuning.trials],
        "chosen": None if tuning.chosen is None else _values(tuning.chosen.tuned),
        "at_the_edge": list(tuning.edges),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
