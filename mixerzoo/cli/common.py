"""What the commands share: their common arguments, and how they print."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.completion import complete_recipe
from mixerzoo.cli.verbosity import detail, is_verbose
from mixerzoo.errors import CONTROL, BackendError, DataError, MixerzooError, RecipeError, RunError, visible

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

#: A recipe file, or a name.
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or a name that `mixerzoo recipes` lists.",
        show_default=False,
        autocompletion=complete_recipe,
    ),
]

#: Overrides of a recipe.
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE",
        help="Overrides of the recipe, e.g. train.steps=100 mixer.stride=4.",
        show_default=False,
    ),
]

#: Plain JSON in place of tables.
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

#: An option's device.
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="E.g. cpu or cuda:1; default: a GPU where there is one.")
]

_MAX_ERROR_LINES = 20
_SILENCE = 10.0


def report(error: MixerzooError | OSError) -> None:
    """Print an error, under torchrun once: what one machine's processes run into, all of them do as a rule."""
    # A recipe is wrong on every machine, all else may be the trouble of one.
    if rank_of(every_machine=isinstance(error, RecipeError)) != 0:
        # torchrun ends all processes with the first that fails, so the one that speaks must come before.
        time.sleep(_SILENCE)
    # Who is still there by then is alone with its trouble.
    print_error(error)


def rank_of(*, every_machine: bool = True) -> int:
    """The rank of this process, 0 where it is alone or the environment makes no sense.

    Args:
        every_machine: among the processes of all machines, or of this one alone.
    """
    if not any(os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        return 0  # without the cost of torch
    from mixerzoo.process import launch

    try:
        found = launch()
    except RunError:
        return 0
    return found.rank if every_machine else found.local_rank


def print_error(error: MixerzooError | OSError) -> None:
    """Print an error to stderr as it is: no markup, no wrapping, at most a screenful of lines."""
    if is_verbose():
        typer.echo(visible("".join(traceback.format_exception(error))), nl=False, err=True)
    text = visible(_system_error(error) if isinstance(error, OSError) else str(error))
    lines = text.splitlines() or [type(error).__name__]
    typer.secho("Error:", fg="red", bold=True, nl=False, err=True)
    typer.echo(" " if len(lines) == 1 else "\n", nl=False, err=True)
    typer.echo("\n".join(lines[:_MAX_ERROR_LINES]), err=True)
    if len(lines) > _MAX_ERROR_LINES:
        typer.echo(f"… and {len(lines) - _MAX_ERROR_LINES} more", err=True)


def _system_error(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename is not None else error.strerror


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout; a number that is not finite is null."""
    from mixerzoo import files

    # A stream that cannot carry every letter would spoil them.
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(files.finite(value), indent=2, ensure_ascii=not unicode)
    # JSON lets pass what a terminal obeys; escaped it is the same JSON.
    typer.echo(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def console() -> Console:
    """Standard output as a rich console that takes text literally."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def table(*columns: str) -> Table:
    """A table with a rule below its header and none besides.

    Args:
        columns: their headers.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        # A long formula goes on in the next line; the default would cut it off.
        made.add_column(column, overflow="fold")
    return made


def print_fitting(out: Console, listing: Table, spare: Sequence[str]) -> None:
    """Print a table without the columns that a narrow terminal has no room for, so that no word and no figure breaks.

    Args:
        out: where to.
        listing: the table.
        spare: headers of columns that may go, the first to go first.
    """
    from rich.cells import cell_len

    for column in listing.columns:
        if column.no_wrap:
            # Rich itself would take a column for as narrow as its longest word.
            column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    wide = out.options.update(max_width=10_000)
    left_out = []
    for header in spare:
        if out.measure(listing, options=wide).minimum <= out.width:
            break
        listing = _without(listing, header)
        left_out.append(header)
    out.print(listing)
    if left_out:
        out.print(f"\nWhat is left out for lack of columns: {', '.join(left_out)}; `--json` has it.")


def _without(listing: Table, header: str) -> Table:
    kept = [column for column in listing.columns if column.header != header]
    made = table(*(str(column.header) for column in kept))
    for new, old in zip(made.columns, kept, strict=True):
        new.justify, new.no_wrap, new.min_width = old.justify, old.no_wrap, old.min_width
    for cells in zip(*(column.cells for column in kept), strict=True):
        made.add_row(*cells)
    return made


def finite(value: float | None) -> float | None:
    """Refuse "nan" as an option's value, which passes every bound.

    Raises:
        typer.BadParameter: it is not a number.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number")
    return value


def refuse_unread(reason: str, **options: object) -> None:
    """Refuse options that were given and that nothing would read.

    Args:
        reason: what makes them meaningless.
        options: by the name of their parameter; None: not given.

    Raises:
        MixerzooError: says which to leave out.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise MixerzooError(f"{reason}; leave out {' and '.join(given)}")


def refuse_twice(option: str, overrides: Sequence[str], key: str) -> None:
    """Refuse an option beside an override of the same key, one of which would be lost.

    Args:
        option: that was given.
        overrides: ``key=value``.
        key: that says the same as the option.

    Raises:
        RecipeError: says which to leave out.
    """
    from mixerzoo.recipe import YamlSource

    if place := YamlSource("{}", option, overrides).override_of(tuple(key.split("."))):
        raise RecipeError(f"{place}: {option} says this too; leave one of them out")


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a file that could not be written in the end, when all has been computed.

    Args:
        out: of the option ``--out``.
        overwrite: whether it may be there.

    Raises:
        DataError: says why.
    """
    from mixerzoo.files import check_writable

    try:
        if out.is_dir() or not out.absolute().parent.is_dir():
            raise DataError(f"{out}: {'is a directory' if out.is_dir() else 'there is no such directory'}")
        if out.exists() and not out.is_file():
            raise DataError(f"{out}: is a pipe or a device; name a file")
        if out.exists() and not overwrite:
            raise DataError(f"{out}: exists; name another file, or replace it with --overwrite")
        check_writable(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror}") from error


def pick_device(name: str | None) -> torch.device:
    """The device of an option's value; without one, a GPU where there is one.

    Raises:
        BackendError: there is no such device here.
    """
    from mixerzoo.model import default_device, find_device

    device = find_device(default_device() if name is None else name)
    if device.type == "meta":
        raise BackendError("device 'meta' holds no numbers")
    detail(f"device: {device}")
    return device


def tell_recipe(recipe: str, overrides: Sequence[str]) -> None:
    """Say in full which recipe was chosen, where that is wanted.

    Args:
        recipe: a path or a name.
        overrides: of it.
    """
    from mixerzoo.recipe import find_recipe

    detail(f"recipe: {find_recipe(recipe).absolute()}")
    for override in overrides:
        detail(f"  with {override}")
