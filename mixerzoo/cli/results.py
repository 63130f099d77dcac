"""The table that ends a training run and an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixerzoo.cli.common import console, table

#: Letters of a SHA-256, of which a few tell one text from another.
_DIGEST = 64


def print_result(result: Mapping[str, Any]) -> None:
    """Print final figures.

    Args:
        result: as `mixerzoo.training.run.train` returns them.
    """
    figures = table("validation", f"{result['num_bytes']:,} bytes, {result['num_tokens']:,} tokens")
    figures.columns[1].justify = "right"
    figures.add_row("bits per byte", f"{result['bits_per_byte']:.4f}", style="bold")
    xz = f"  xz, of the first {result['xz_bytes']:,} bytes" if "xz_bytes" in result else "  xz"
    for title, key in (("  byte-bigram model", "bigram_bits_per_byte"), (xz, "xz_bits_per_byte")):
        # Yardsticks that could not be computed are null.
        figures.add_row(title, "unknown" if result[key] is None else f"{result[key]:.4f}")
    # JSON has no word for infinity: a result that was read back has None.
    perplexity = result["perplexity"]
    figures.add_row("perplexity per token", "infinite" if perplexity in (None, math.inf) else f"{perplexity:.3f}")
    if result.get("tokens_per_second") is not None:
        figures.add_row("training, tokens per second", f"{result['tokens_per_second']:,.0f}")
    if result.get("train_seconds") is not None:
        figures.add_row("  seconds", f"{result['train_seconds']:,.1f}")
        figures.add_row("  floating-point operations", f"{result['train_flops']:.3g}")
        figures.add_row("  peak memory, MiB", f"{result['peak_memory_bytes'] / 2**20:,.0f}")
    figures.add_row("parameters", f"{result['parameters']:,}")
    figures.add_row("  of the mixer", f"{result['mixer_parameters']:,}")
    figures.add_row("KV cache, bytes per token", f"{result['kv_bytes_per_token']:,}")
    figures.add_row("in flight, bytes per token", f"{result['in_flight_bytes_per_token']:,}")
    console().print(figures)


def print_comparison(results: Sequence[Mapping[str, Any]]) -> None:
    """Print checkpoints side by side: a column for each, a row for each figure.

    Args:
        results: as `mixerzoo.evaluation.side_by_side.compare` returns them.
    """
    figures = table("", *(result["directory"] for result in results))
    for column in figures.columns[1:]:
        column.justify = "right"

    def row(title: str, *keys: str) -> None:
        figures.add_row(title, *(_at(result, keys) for result in results))

    row("mixer", "mixer")
    row("parameters", "parameters")
    if "window" in results[0]:
        row("window, tokens", "window")
    if "bits_per_byte" in results[0]:
        differ = results[0].get("same_validation_text") is False
        figures.add_row("validation, on different texts" if differ else "validation", style="bold")
        if differ:
            row("  text", "validation_text")
        row("  bytes of text", "num_bytes")
        row("  bits per byte", "bits_per_byte")
        row("    byte-bigram model", "bigram_bits_per_byte")
        row("    xz", "xz_bits_per_byte")
        row("  perplexity per token", "perplexity")
    for name in results[0].get("texts", {}):
        figures.add_row(name, style="bold")
        row("  bytes of text", "texts", name, "num_bytes")
        row("  bits per byte", "texts", name, "bits_per_byte")
        row("  perplexity per token", "texts", name, "perplexity")
    for name, metrics in results[0].get("tasks", {}).items():
        figures.add_row(name, style="bold")
        for metric in metrics:
            if "_stderr" not in metric:
                row(f"  {metric.replace('_', ' ')}", "tasks", name, metric)
    console().print(figures)
    if results[0].get("same_validation_text") is False:
        console().print(
            "The validation texts differ, so their figures do not rank these checkpoints: score one text with --text."
        )


def _at(result: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The figure under the keys, with its standard error if it has one."""
    inner: Any = result
    for key in keys[:-1]:
        inner = inner[key]
    if keys[-1] not in inner:
        return ""
    metric, _, chosen_filter = keys[-1].partition(",")
    error = inner.get(f"{metric}_stderr,{chosen_filter}".removesuffix(","))
    return _figure(inner[keys[-1]]) + (f" ± {_figure(error)}" if error is not None else "")


def _figure(value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) < _DIGEST else value[:12]
    if value is None or value == math.inf:
        return "infinite"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"
