"""`mixerzoo check`."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import JsonOption, console, finite, print_json, table
from mixerzoo.cli.completion import complete_mixer
from mixerzoo.cli.verbosity import is_quiet, stderr_console
from mixerzoo.errors import MixerzooError, error_line, visible

if TYPE_CHECKING:
    from mixerzoo.mixer import MixerEntry
    from mixerzoo.testing import Check, Reference, Result
    from mixerzoo.testing.check import Profile
    from mixerzoo.testing.drawn_options import Overrides


_NameArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="An installed mixer.", show_default=False, autocompletion=complete_mixer),
]
_OptionsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OPTION=VALUE",
        help="Options of the mixer that are fixed, e.g. period=2; the others are drawn.",
        show_default=False,
    ),
]
_ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODULE:NAME",
        help="The mixer's mixerzoo.testing.Reference; modules are also looked for in the current directory.",
        show_default=False,
    ),
]
_ThoroughOption = Annotated[
    bool, typer.Option("--thorough", help="Many more cases, and the slow checks; takes many minutes.")
]
_SecondsOption = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        metavar="S",
        min=0,
        max=1e9,
        callback=finite,
        help="Time budget: checks that would start after it are skipped.",
        show_default=False,
    ),
]
_OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="CHECK",
        help="Run this check alone, by its name or the number of its clause; can be repeated.",
        show_default=False,
    ),
]


def command(
    name: _NameArgument,
    options: _OptionsArgument = None,
    reference: _ReferenceOption = None,
    thorough: _ThoroughOption = False,
    seconds: _SecondsOption = None,
    only: _OnlyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold an installed mixer to every clause of the conformance kit.

    For each failure the smallest case that was found is printed as Python that runs it again. The exit code is
    0 if no clause is broken, 1 if one is, and 2 if nothing ran.
    """
    from mixerzoo.mixer import load_registry, output_to_stderr

    entry = load_registry().get(name)
    try:
        importlib.import_module("mixerzoo.testing")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "hypothesis":
            raise
        raise MixerzooError(
            'the conformance kit needs the extra `testing`, which is not installed: pip install "mixerzoo[testing]"'
        ) from error
    profile: Profile = "thorough" if thorough else "quick"
    started = time.monotonic()
    # What a mixer or its reference prints would spoil the table, and the JSON.
    with output_to_stderr():
        held_against = None if reference is None else _reference(reference)
        overrides = _overrides(name, options or ())
        results = _run(entry, profile, held_against, overrides, seconds, only or None)
    elapsed = time.monotonic() - started
    if as_json:
        print_json(_to_dict(entry, profile, results, elapsed))
    else:
        _print(entry, results, elapsed)
    if not all(result.ok for result in results):
        raise typer.Exit(1)
    if not _any_ran(results):
        raise typer.Exit(2)


def _any_ran(results: Sequence[Result]) -> bool:
    """Whether anything is known; a run in which nothing ran must not pass for a good one."""
    return any(result.outcome != "skipped" for result in results)


def _reference(place: str) -> Reference:
    """Import ``module:name``.

    Raises:
        MixerzooError: nothing of this kind is there.
    """
    from mixerzoo.testing import Reference

    module_name, colon, name = place.partition(":")
    if not (module_name and colon and name.isidentifier()):
        raise MixerzooError(f"--reference {place!r}: expected module:name, e.g. tests.reference:REFERENCE")
    # A console script does not look in the current directory, where an author's tests are.
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise MixerzooError(f"--reference {place!r}: {module_name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # an author's module may fail in any way, and exit codes are clauses'
        raise MixerzooError(f"--reference {place!r}: {module_name} cannot be imported: {error_line(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Reference):
        what = "there is no such name" if found is None else f"it is of type {type(found).__name__}"
        raise MixerzooError(f"--reference {place!r} is not a mixerzoo.testing.Reference: {what}")
    return found


def _overrides(mixer: str, options: Sequence[str]) -> Overrides:
    """Strategies that give the options of the command line and nothing else.

    Raises:
        MixerzooError: an option is unknown, or its value is not valid.
    """
    from hypothesis import strategies as st

    from mixerzoo.mixer import MixerChoice, check_choice
    from mixerzoo.recipe import YamlSource

    given = YamlSource("{}", mixer, options).data
    checked = check_choice({**given, "name": mixer}) if given else None
    if isinstance(checked, list):
        lines = [": ".join(filter(None, [".".join(map(str, problem.path)), problem.message])) for problem in checked]
        raise MixerzooError(f"options of {mixer}: " + "\n".join(lines))
    assert checked is None or isinstance(checked, MixerChoice)
    return {name: st.just(value) for name, value in given.items()}


def _run(
    entry: MixerEntry,
    profile: Profile,
    reference: Reference | None,
    overrides: Overrides,
    seconds: float | None,
    only: Sequence[str] | None,
) -> list[Result]:
    """Run the checks behind a bar on stderr.

    Returns:
        The results in the order of the clauses.

    Raises:
        MixerzooError: a name in ``only`` is no check, or none of this profile.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mixerzoo.testing import check_mixer, checks_for, known_check

    stderr = stderr_console()
    bars = Progress(
        TextColumn("{task.description:<26}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=is_quiet() or not stderr.is_terminal,
    )
    task = bars.add_task(
        "", total=len(checks_for(entry.mixer, profile)) if only is None else len(set(map(known_check, only)))
    )

    def progress(check: Check, result: Result | None) -> None:
        if result is None:
            bars.update(task, description=f"{check.clause} {check.name}")
        else:
            bars.advance(task)
            if not result.ok:
                bars.console.print(f"{check.clause} {check.name}: {result.outcome}", soft_wrap=True)

    with bars:
        return check_mixer(
            entry.mixer,
            reference=reference,
            profile=profile,
            overrides=overrides,
            only=only,
            seconds=seconds,
            progress=progress,
        )


def _to_dict(entry: MixerEntry, profile: str, results: Sequence[Result], elapsed: float) -> dict[str, Any]:
    return {
        "mixer": entry.mixer.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "profile": profile,
        "ok": _any_ran(results) and all(result.ok for result in results),
        "seconds": round(elapsed, 3),
        "results": [
            {
                "clause": result.check.clause,
                "check": result.check.name,
                "demands": result.check.summary,
                "outcome": result.outcome,
                "message": result.message,
                "snippet": result.snippet,
                "cases": result.ran,
                "refused": result.refused,
                "cut": result.cut,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }


def _print(entry: MixerEntry, results: Sequence[Result], elapsed: float) -> None:
    from rich.text import Text

    from mixerzoo.testing import failures_text

    out = console()
    listing = table("Clause", "Check", "Outcome", "Seconds")
    listing.columns[3].justify = "right"
    styles = {"passed": "green", "skipped": "yellow"}
    for result in results:
        outcome = Text(result.outcome, style=styles.get(result.outcome, "bold red"))
        listing.add_row(result.check.clause, result.check.name, outcome, f"{result.seconds:.1f}")
    out.print(listing)
    if failures := failures_text(results):
        out.print(f"\n{visible(failures)}", soft_wrap=True)
    skipped: dict[str, list[str]] = {}
    for result in results:
        if result.outcome == "skipped":
            skipped.setdefault(result.message, []).append(result.check.clause)
    for reason, clauses in skipped.items():
        out.print(f"\nSkipped {', '.join(clauses)}: {reason}.", soft_wrap=True)
    for result in results:
        if result.cut:
            left_out = f"{result.cut} of its {result.ran + result.cut} cases"
            words = f"{result.check.clause} {result.check.name} took too long: {left_out} were left out."
            out.print(f"\n{words}", soft_wrap=True)
    ran, refused = sum(result.ran for result in results), sum(result.refused for result in results)
    if refused:
        out.print(f"\n{ran} cases ran; {refused} more were drawn, and refused by the mixer.", soft_wrap=True)
    if not _any_ran(results):
        out.print("\nNothing ran, so nothing is known.", soft_wrap=True)
    counted = Counter(result.outcome for result in results)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in counted.items())
    out.print(
        f"\n{entry.mixer.name} ({entry.distribution} {entry.version}): {counts}, in {elapsed:.0f} s.", soft_wrap=True
    )
