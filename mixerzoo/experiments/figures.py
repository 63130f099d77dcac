"""The words of figures, the same in every form of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

#: Where a figure is not known.
NONE = "—"


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        key: of the row in ``results.json``.
        title: above it.
        tells: what it is, in a sentence.
    """

    key: str
    title: str
    tells: str


COLUMNS = (
    Column("bits_per_byte", "bits per byte", "of the held-out text; mean over seeds, with its 95 % t interval"),
    Column(
        "difference",
        "difference",
        "to the baseline, paired by seed, corrected by Holm for the number of mixers in the table",
    ),
    Column("parameters", "parameters", "of decoder and mixer"),
    Column("mixer_parameters", "of the mixer", "parameters that the mixer adds"),
    Column("cache_bytes", "cache bytes", "keys and values of one sequence of the recipe's length"),
    Column("in_flight_bytes_per_token", "bytes in flight", "the mixer's state at its largest, per token of a forward"),
    Column("flops_per_token", "FLOPs a token", "of a forward"),
    Column("steps", "steps", "of each run"),
    Column("train_seconds", "seconds", "of training, mean over seeds"),
    Column("tokens_per_second", "tokens/s", "of training, mean over seeds"),
    Column("peak_memory_bytes", "peak memory, MiB", "the largest over seeds"),
)


def cell(row: Mapping[str, Any], key: str) -> str:
    """The words of a figure.

    Args:
        row: of a mixer, in ``results.json``.
        key: of a `Column`.
    """
    value = row.get(key)
    if key == "difference":
        return difference(value)
    if value is None:
        return NONE
    if key == "bits_per_byte":
        return interval(value)
    if key == "train_seconds":
        return f"{value:,.1f}"
    if key == "peak_memory_bytes":
        return f"{value / 2**20:,.0f}"
    return f"{round(value):,}"


def interval(found: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    mean = f"{found['mean']:.4f}"
    return mean if found["low"] is None else f"{mean} ({found['low']:.4f} to {found['high']:.4f})"


def difference(found: Mapping[str, Any] | None) -> str:
    """A difference in words, its interval and what it shows."""
    if found is None:
        return NONE
    if found["low"] is None:
        return f"{found['mean']:+.4f}; fewer than three seeds, no interval"
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}); {found['verdict']}"


def setting_in_words(setting: Mapping[str, Any]) -> str:
    """The varied values of a setting; empty where nothing is varied."""
    return ", ".join(f"{key} = {value}" for key, value in setting["vary"].items())


def summary(results: Mapping[str, Any], setting: Mapping[str, Any]) -> list[str]:
    """What is shown and what is not, in sentences."""
    baseline, rows = results["baseline"], setting["mixers"]
    told = {row["label"]: row["difference"] for row in rows if row["difference"] is not None}
    lines = []
    for verdict in ("better", "worse"):
        labels = [label for label, found in told.items() if found["verdict"] == verdict]
        if labels:
            lines.append(f"{verdict.capitalize()} than {baseline}: {', '.join(labels)}.")
    labels = [label for label, found in told.items() if found["verdict"] == "no difference shown"]
    if labels:
        lines.append(f"No difference to {baseline} shown: {', '.join(labels)}.")
    if any(found["verdict"] == "too few seeds" for found in told.values()):
        lines.append("Fewer than three seeds: no interval is given, and nothing is said of which is better.")
    missing = [row["label"] for row in rows if row["bits_per_byte"] is None]
    if missing:
        lines.append(f"Not finished: {', '.join(missing)}.")
    return lines


def method(results: Mapping[str, Any]) -> str:
    """How the figures came about, in a paragraph."""
    seeds = ", ".join(map(str, results["seeds"]))
    what = {
        "steps": "All runs take the same steps.",
        "flops": "Steps are chosen so that all mixers take the operations of the baseline, by the decoders' account.",
        "seconds": "Steps are chosen so that all mixers train as long as the baseline, by speeds measured beforehand.",
    }[results["equal"]]
    text = (
        f"Seeds {seeds}. Runs of one seed see the same data in the same order, and their decoders begin with the same "
        f"weights. {what} Intervals are of Student's t over seeds at {results['level']:.0%}; differences are paired by "
        "seed, and their intervals widened by Holm's procedure for the number of mixers, so that one leaves out zero "
        "where, and only where, a difference is shown."
    )
    if len(results["settings"]) > 1:
        text += (
            f" That is so for each table; there are {len(results['settings'])}, and the chance that any of them shows "
            "a difference where there is none grows with their number."
        )
    if results["tuning_seeds"]:
        text += f" Values were tuned on other seeds: {', '.join(map(str, results['tuning_seeds']))}."
    return text


def threads(results: Mapping[str, Any]) -> str:
    """How many threads a run had."""
    return "1 thread" if results["threads"] == 1 else f"{results['threads']} threads"


def tuning_in_words(found: Mapping[str, Any]) -> str:
    """How one mixer's values were chosen."""
    if found["chosen"] is None:
        return f"{found['label']}: no value is chosen, for no run of its tuning is finished."
    values = ", ".join(f"{key} = {value}" for key, value in found["chosen"].items())
    text = f"{found['label']}: {values}"
    if found["at_the_edge"]:
        text += f" (at the edge of the grid in {', '.join(found['at_the_edge'])}: try values beyond)"
    known = sum(trial["bits_per_byte"] is not None for trial in found["trials"])
    if known < len(found["trials"]):
        text += f" (chosen among {known} of {len(found['trials'])}: the others are not finished)"
    return text


def weights_in_words(row: Mapping[str, Any]) -> str:
    """What a mixer learned to weigh, in a sentence; empty where no run of it is finished."""
    found = row["weights"]
    if found is None:
        return ""
    if found["error"] is not None:
        return f"{row['label']}: its weights could not be looked at: {found['error']}"
    if not found["sites"]:
        return f"{row['label']} shows no weights: it weighs no sources, or does not say how."
    return (
        f"{row['label']}: how each site (rows) weighs its sources (columns); mean over {found['num_tokens']:,} tokens"
    )


def short(value: float) -> str:
    """A number for the axis of a figure."""
    if not math.isfinite(value):
        return NONE
    rounded = float(f"{value:.3g}")
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{rounded:.3g}"
