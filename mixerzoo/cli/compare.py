"""`mixerzoo compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    console,
    print_fitting,
    print_json,
    rank_of,
    table,
    tell_recipe,
)
from mixerzoo.cli.completion import complete_mixers
from mixerzoo.cli.verbosity import stderr_console
from mixerzoo.errors import RunError

if TYPE_CHECKING:
    from mixerzoo.experiments import Comparison

_Mixers = Annotated[
    str | None,
    typer.Option(
        "--mixers",
        help="Names, with commas between; with options as in YAML: 'residual, {name: cla}, again: residual'.",
        show_default=False,
        autocompletion=complete_mixers,
    ),
]
_Seeds = Annotated[
    str | None, typer.Option("--seeds", help="How many seeds, or a list: 0,1,2; default: 3.", show_default=False)
]
_Vary = Annotated[
    list[str] | None,
    typer.Option("--vary", metavar="KEY=V1,V2", help="Values of a key of the recipe; may be repeated."),
]
_Tune = Annotated[
    list[str] | None,
    typer.Option("--tune", metavar="KEY=V1,V2", help="Values of which each mixer gets its best; may be repeated."),
]
_TuneSeeds = Annotated[
    str | None,
    typer.Option("--tune-seeds", help="Seeds for the choice, as --seeds; default: 1.", show_default=False),
]
_EqualOption = Annotated[
    str | None,
    typer.Option("--equal", help="What runs have in common: steps, flops or seconds.", show_default=False),
]
_Baseline = Annotated[
    str | None, typer.Option("--baseline", help="Label to compare with; default: the first.", show_default=False)
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", help="Directory; default: comparisons/ and the recipe's name.", show_default=False),
]
_Jobs = Annotated[int, typer.Option("--jobs", min=1, max=1024, help="Runs at a time.")]
_Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=4096, help="Of each run; default: the cores shared among the jobs."),
]
_Device = Annotated[
    str | None,
    typer.Option("--device", help="E.g. cpu, or cuda:0,cuda:1, which runs take in turn; default: as `train`."),
]
_Yes = Annotated[bool, typer.Option("--yes", help="Run a grid of more than 1,000 runs.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List all runs, finished or not, and what they would take; run nothing.")
]


def command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    mixers: _Mixers = None,
    seeds: _Seeds = None,
    vary: _Vary = None,
    tune: _Tune = None,
    tune_seeds: _TuneSeeds = None,
    equal: _EqualOption = None,
    baseline: _Baseline = None,
    out: _Out = None,
    jobs: _Jobs = 1,
    threads: _Threads = None,
    device: _Device = None,
    yes: _Yes = False,
    dry_run: _DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Compare mixers over seeds and keys: a grid of runs, and a report.

    The grid can also stand in the recipe, under `compare`. The same command goes on after an interruption; what is
    finished is not repeated. Exit code 1: a run failed, and the others are reported.
    """
    from mixerzoo.experiments import MOST_CELLS, Flags, find_devices, read_comparison
    from mixerzoo.recipe import find_recipe

    flags = Flags(
        mixers=mixers,
        seeds=seeds,
        vary=vary or (),
        tune=tune or (),
        tune_seeds=tune_seeds,
        equal=equal,
        baseline=baseline,
    )
    tell_recipe(recipe, overrides or ())
    comparison = read_comparison(recipe, overrides or (), flags, most=None if yes else MOST_CELLS)
    devices = find_devices([] if device is None else [name.strip() for name in device.split(",")])
    if dry_run:
        _print_plan(comparison, jobs, threads, devices[:1], as_json=as_json)
        return
    directory = out if out is not None else Path("comparisons") / find_recipe(recipe).stem
    found = _compare(comparison, directory, jobs, threads, devices)
    if as_json:
        print_json(found)
    else:
        _print_found(found, directory)
    if found["failures"]:
        raise typer.Exit(1)


def _compare(
    comparison: Comparison, directory: Path, jobs: int, threads: int | None, devices: tuple[str, ...]
) -> dict[str, Any]:
    from mixerzoo.cli.progress import BarReporter
    from mixerzoo.experiments import Board, compare
    from mixerzoo.process import launch

    if launch().world_size > 1 or rank_of() != 0:
        raise RunError("compare starts its processes itself; run it without torchrun")
    words = shlex.join(["mixerzoo", *sys.argv[1:]])
    board = Board(stderr_console(), jobs)
    try:
        with board:
            return compare(
                comparison,
                directory,
                jobs=jobs,
                threads=threads,
                devices=devices,
                command=words,
                watcher=board,
                reporter=BarReporter(),
            )
    except KeyboardInterrupt as error:
        typer.echo("Interrupted. The same command goes on.", err=True)
        raise typer.Exit(130) from error


def _print_found(found: dict[str, Any], directory: Path) -> None:
    from mixerzoo.experiments import COLUMNS, cell, setting_in_words, summary

    shown = [c for c in COLUMNS if c.key in ("bits_per_byte", "difference", "parameters", "cache_bytes")]
    out = console()
    for setting in found["settings"]:
        listing = table(setting_in_words(setting) or "mixer", *(column.title for column in shown))
        for row in setting["mixers"]:
            listing.add_row(row["label"], *(cell(row, column.key) for column in shown))
        for column in listing.columns:
            column.no_wrap = column.header not in ("bits per byte", "difference")
        print_fitting(out, listing, ("cache bytes", "parameters"))
        out.print("", *summary(found, setting), "", sep="\n")
    for each in found["failures"]:
        typer.echo(f"Failed: {each['title']}: {each['error']}", err=True)
    typer.echo(f"Report: {directory / 'report.html'} (and report.md, results.csv, results.json)")


def _print_plan(
    comparison: Comparison, jobs: int, threads: int | None, devices: Sequence[str], *, as_json: bool
) -> None:
    from mixerzoo.experiments import default_threads, estimates

    found = estimates(comparison, threads or default_threads(jobs), *devices)
    seconds = sum(each.seconds or 0.0 for each in found) / jobs
    problems = {each.problem: each.cell.variant.label for each in found if each.problem is not None}
    if as_json:
        rows = [
            {
                "run": each.cell.title,
                "directory": each.cell.place.as_posix(),
                "parameters": each.parameters,
                "tokens": each.tokens,
                "flops": each.flops,
                "memory_bytes_estimate": each.memory,
                "seconds_estimate": each.seconds,
                "problem": each.problem,
            }
            for each in found
        ]
        print_json({"runs": rows, "seconds_estimate": seconds})
        return
    listing = table("run", "parameters", "tokens", "FLOPs", "memory", "time")
    for column in listing.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for each in found:
        listing.add_row(
            each.cell.title,
            f"{each.parameters:,}",
            f"{each.tokens:,}",
            f"{each.flops:.2e}",
            f"{each.memory / 2**20:,.0f} MiB",
            "?" if each.seconds is None else _minutes(each.seconds),
        )
    out = console()
    print_fitting(out, listing, ("FLOPs", "tokens"))
    out.print("\nMemory and time are estimates.")
    for problem, label in problems.items():
        typer.echo(f"{label} could not be tried here: {problem}", err=True)
    known = "" if not problems else " for those that could be tried"
    typer.echo(f"{len(found)} runs, roughly {_minutes(seconds)} with --jobs {jobs} on this machine{known}")
    if comparison.equal != "steps":
        typer.echo(f"(before steps are fitted to equal {comparison.equal})")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
