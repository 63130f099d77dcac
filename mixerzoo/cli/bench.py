"""`mixerzoo bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import (
    DeviceOption,
    JsonOption,
    OverridesArgument,
    check_out,
    console,
    pick_device,
    print_json,
    refuse_unread,
    table,
    tell_recipe,
)
from mixerzoo.cli.completion import complete_mixers, complete_recipe
from mixerzoo.cli.verbosity import stderr_console
from mixerzoo.errors import BenchmarkError

if TYPE_CHECKING:
    from rich.table import Table

    from mixerzoo.benchmark import Benchmark

_Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or a name that `mixerzoo recipes` lists.",
        show_default=True,
        autocompletion=complete_recipe,
    ),
]
_Mixers = Annotated[
    str | None,
    typer.Option(
        "--mixers",
        help="As in `compare`; default: the recipe's `compare.mixers`, or its own. Residual is always among them.",
        show_default=False,
        autocompletion=complete_mixers,
    ),
]
_Peers = Annotated[
    str | None,
    typer.Option("--peers", help="`transformers`: its own model on the same weights, too.", show_default=False),
]
_Phases = Annotated[str, typer.Option("--phases", help="What is timed, of these, with commas between.")]
_Dtype = Annotated[
    str, typer.Option("--dtype", help="E.g. bfloat16: training is then under autocast, with weights in float32.")
]
_Compile = Annotated[
    str,
    typer.Option(
        "--compile",
        help="What torch.compile runs: off, layers (of training), whole; with commas between, to time several.",
    ),
]
_Batch = Annotated[int, typer.Option("--batch", min=1, max=2**16, help="Rows.")]
_Tokens = Annotated[int, typer.Option("--tokens", min=1, max=2**24, help="Of a row: trained on, or read as a prompt.")]
_Rounds = Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="In each of which everything is timed once.")]
_Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=4096, help="On a CPU; default: PyTorch's.", show_default=False)
]
_Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the figures to a file, as JSON.", show_default=False)
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]


_DEFAULT = "bench"


def command(
    recipe: _Recipe = _DEFAULT,
    overrides: OverridesArgument = None,
    mixers: _Mixers = None,
    peers: _Peers = None,
    phases: _Phases = "train,prefill,decode",
    device: DeviceOption = None,
    dtype: _Dtype = "float32",
    compile: _Compile = "off",
    batch: _Batch = 2,
    tokens: _Tokens = 1024,
    rounds: _Rounds = 5,
    threads: _Threads = None,
    out: _Out = None,
    overwrite: _Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Time mixers beside plain residual: a training step, a prompt, and writing.

    All share the decoder's weights and take turns in every round, so that a busy machine slows all alike; a ratio is
    the median over rounds of the ratio within one. Exit code 1: something could not be run, and the rest is reported.
    """
    import torch

    from mixerzoo.benchmark import read_benchmark

    changes = list(overrides or ())
    if "=" in recipe and not Path(recipe).exists():
        # Without a recipe, the first override is taken for one.
        recipe, changes = _DEFAULT, [recipe, *changes]
    if overwrite and out is None:
        raise BenchmarkError("--overwrite is about --out, which is not given")
    if out is not None:
        check_out(out, overwrite)
    where = pick_device(device)
    if where.type != "cpu":
        refuse_unread(f"threads are a CPU's, and everything is timed on {where}", threads=threads)
    tell_recipe(recipe, changes)
    benchmark = read_benchmark(
        recipe,
        changes,
        mixers=mixers,
        peers=_names(peers or ""),
        phases=_names(phases),
        device=where,
        dtype=dtype,
        compile=_names(compile),
        batch=batch,
        tokens=tokens,
        rounds=rounds,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    found = _run(benchmark)
    _report(found, out, as_json=as_json)
    if any(model["failures"] for model in found["models"]):
        raise typer.Exit(1)


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _run(benchmark: Benchmark) -> dict[str, Any]:
    from mixerzoo.benchmark import run_benchmark

    try:
        with stderr_console().status("") as status:
            return run_benchmark(benchmark, lambda what: status.update(f"{what[:1].upper()}{what[1:]}"))
    except KeyboardInterrupt as error:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from error


def _report(found: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    from mixerzoo.files import to_json, write_text

    try:
        if out is not None:
            write_text(out, to_json(found))
    finally:
        # What took so long to measure is shown even where the disk has become full since.
        if as_json:
            print_json(found)
        else:
            _print(found)


def _print(found: dict[str, Any]) -> None:
    from mixerzoo.yaml_text import one_line

    printer, device, versions = console(), found["device"], found["versions"]
    hardware = f"{device['threads']} threads of {device['processor']}" if device["name"] == "cpu" else device["name"]
    flops, nbytes = (found["ceilings"][key] for key in ("flops_per_second", "bytes_per_second"))
    recomputed = found["activation_checkpointing"]
    training = any("train" in model["phases"] for model in found["models"])
    again = f"activation checkpointing {one_line(recomputed)}, " if training and recomputed != "none" else ""
    printer.print(
        f"{found['recipe']}: {found['batch']} × {found['tokens']:,} tokens, {found['dtype']}, "
        f"compile {', '.join(found['compile'])}, {again}{found['rounds']} rounds, on {hardware}",
        f"At best {flops / 1e12:,.3g} TFLOP/s and {nbytes / 1e9:,.4g} GB/s, as measured. "
        f"PyTorch {versions['torch']}, transformers {versions['transformers']}.",
        "",
        sep="\n",
        soft_wrap=True,
    )
    for phase, (title, unit) in _TITLES.items():
        rows = [(model, model["phases"][phase]) for model in found["models"] if phase in model["phases"]]
        if rows:
            printer.print(_times(title, unit, rows, found), "")
    if found["models"][0]["phases"].keys() != {"decode"}:
        printer.print(_memory(found), "")
    printer.print(_LEGEND, "", sep="\n")
    for model in found["models"]:
        for part, why in model["failures"].items():
            printer.print(f"{model['label']}: {part}: {why}", soft_wrap=True)
    for model in found["models"]:
        if model["logits_difference"] is not None:
            printer.print(
                f"The logits of {model['label']} differ from residual's by {model['logits_difference']:.1e} of the "
                "largest.",
                soft_wrap=True,
            )


def _times(title: str, unit: str, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], found: Any) -> Table:
    both = title.startswith("Training")
    listing = table(title, unit, "ratio", "quartiles", *(["+ AdamW"] if both else []), "of floor", "first, s")
    for column in listing.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for model, figures in rows:
        low, high = figures["ratio_quartiles"]
        step = model["phases"].get("train_with_optimizer")
        listing.add_row(
            model["label"],
            f"{1e3 * figures['seconds']:,.4g}",
            f"{figures['ratio']:.3f}",
            "" if model["label"] == found["baseline"] else f"{low:.2f}–{high:.2f}",
            *([f"{step['ratio']:.3f}" if step else ""] if both else []),
            "" if figures["floor_share"] is None else f"{figures['floor_share']:.0%}",
            f"{figures['first_call_seconds']:,.3g}",
        )
    return listing


def _memory(found: dict[str, Any]) -> Table:
    phases = [phase for phase in ("train", "prefill", "decode") if phase in found["models"][0]["phases"]]
    training = "train" in phases
    listing = table("Memory, MiB", *(["kept", "ratio"] if training else []), *(f"peak, {phase}" for phase in phases))
    for column in listing.columns[1:]:
        column.justify, column.no_wrap = "right", True
    base = found["models"][0]["kept_bytes"]
    for model in found["models"]:
        kept = model["kept_bytes"]
        peaks = [model["phases"].get(phase, {}).get("peak_bytes") for phase in phases]
        listing.add_row(
            model["label"],
            *([_mib(kept), f"{kept / base:.3f}" if kept and base else ""] if training else []),
            *map(_mib, peaks),
        )
    return listing


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.4g}"


_LEGEND = """\
ratio      to residual in the same round, median over rounds
+ AdamW    the ratio with the optimiser's step, which is not in the ms
of floor   what the arithmetic or the memory would take at the device's best
first      the first time, with compilation; of decoding, of 16 tokens
kept       from forward to backward, parameters left out
peak       of all tensors, beyond what was there before"""

#: Phase → the head of its table, and the unit of its times.
_TITLES = {
    "train": ("Training step", "ms"),
    "prefill": ("Prefill", "ms"),
    "decode": ("Decoding", "ms a token"),
}
