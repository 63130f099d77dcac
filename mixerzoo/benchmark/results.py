"""What a benchmark found, as JSON holds it."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mixerzoo.benchmark.ceilings import Ceilings
from mixerzoo.benchmark.clock import ratio
from mixerzoo.benchmark.plan import BASELINE, DECODED, Benchmark
from mixerzoo.benchmark.running import KEPT, Measured, measure
from mixerzoo.version import __version__

#: Phase → the parts whose times it sums up.
_PARTS = {
    "train": ("train",),
    "train_with_optimizer": ("train", "optimizer"),
    "prefill": ("prefill",),
    "decode": ("decode",),
}
_PROCESSORS = Path("/proc/cpuinfo")


def run_benchmark(benchmark: Benchmark, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run a benchmark; docs/performance.md says what the keys mean.

    Args:
        benchmark: what is timed.
        say: is told what is being done.

    Raises:
        BenchmarkError: a peer computes something else, or the baseline cannot be run.
    """
    began = datetime.now(UTC)
    measured, ceilings = measure(benchmark, say)
    base = measured[0]
    return {
        "format": 2,
        "recipe": benchmark.source,
        "model": benchmark.baseline.model.model_dump(mode="json"),
        "date": began.isoformat(timespec="seconds"),
        "device": _device(benchmark.device),
        "versions": {
            "mixerzoo": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "platform": platform.platform(),
        "batch": benchmark.batch,
        "tokens": benchmark.tokens,
        "decoded_tokens": DECODED,
        "rounds": benchmark.rounds,
        "dtype": str(benchmark.dtype).removeprefix("torch."),
        "compile": list(benchmark.compile),
        "attention_backend": benchmark.baseline.model.attention_backend,
        "activation_checkpointing": benchmark.baseline.train.model_dump(mode="json")["activation_checkpointing"],
        "ceilings": {
            "flops_per_second": ceilings.flops_per_second,
            "bytes_per_second": ceilings.bytes_per_second,
        },
        "baseline": BASELINE,
        "models": [_model(benchmark, each, base, ceilings) for each in measured],
    }


def _model(benchmark: Benchmark, measured: Measured, base: Measured, ceilings: Ceilings) -> dict[str, Any]:
    wanted = set(benchmark.phases)
    return {
        "label": measured.label,
        "mixer": None if measured.mixer is None else benchmark.choices[measured.mixer],
        "compile": measured.form,
        "parameters": measured.parameters,
        "logits_difference": measured.logits_difference,
        "kept_bytes": measured.kept_bytes,
        "phases": {
            phase: _phase(parts, measured, base, ceilings)
            for phase, parts in _PARTS.items()
            if parts[0] in wanted and not measured.failures.keys() & set(_before(parts))
        },
        "failures": {part: why for part, why in measured.failures.items() if part in _needed(wanted)},
    }


def _needed(wanted: set[str]) -> set[str]:
    """The parts without which a wanted figure is missing."""
    parts = {part for parts in _PARTS.values() if parts[0] in wanted for part in _before(parts)}
    return parts | {KEPT} if "train" in wanted else parts


def _before(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of a phase, and those that must have run before it."""
    return ("prefill", *parts) if parts == ("decode",) else parts


def _phase(parts: tuple[str, ...], measured: Measured, base: Measured, ceilings: Ceilings) -> dict[str, Any]:
    times, others = _times(parts, measured), _times(parts, base)
    middle, quartiles = ratio(times, others)
    scale = DECODED if parts == ("decode",) else 1
    work = measured.work.get(parts[0]) if len(parts) == 1 else None
    floor = None if work is None else ceilings.floor(*work) / scale
    seconds = [each / scale for each in times]
    median = statistics.median(seconds)
    return {
        "seconds": median,
        "ratio": middle,
        "ratio_quartiles": list(quartiles),
        "rounds": seconds,
        "first_call_seconds": sum(measured.first[part] for part in parts),
        "peak_bytes": measured.peak.get(parts[0]),
        "floor_seconds": floor,
        "floor_share": None if floor is None else floor / median,
    }


def _times(parts: tuple[str, ...], measured: Measured) -> list[float]:
    return [sum(each) for each in zip(*(measured.rounds[part] for part in parts), strict=True)]


def _device(device: torch.device) -> dict[str, Any]:
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    if _PROCESSORS.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", _PROCESSORS.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()
