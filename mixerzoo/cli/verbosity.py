"""How much is said beside results: `--quiet` and `--verbose`, the same for every command."""

from __future__ import annotations

import logging
import platform
import sys
from contextvars import ContextVar
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.version import __version__

if TYPE_CHECKING:
    from rich.console import Console


class Verbosity(Enum):
    """How much is said."""

    quiet = "results and errors alone"
    normal = "progress, notes and hints too"
    verbose = "also what was chosen, and the traceback of an error"


_chosen = ContextVar("verbosity", default=Verbosity.normal)


def is_quiet() -> bool:
    """Whether nothing but results and errors is wanted."""
    return _chosen.get() is Verbosity.quiet


def is_verbose() -> bool:
    """Whether all is wanted."""
    return _chosen.get() is Verbosity.verbose


def reset() -> None:
    """Back to what is said without an option."""
    _chosen.set(Verbosity.normal)
    logging.getLogger("mixerzoo").setLevel(logging.NOTSET)


def hint(text: str, *, err: bool = False) -> None:
    """Print what helps and is no result, unless it is quiet."""
    if not is_quiet():
        typer.echo(text, err=err)


def detail(text: str) -> None:
    """Print on standard error what was chosen, where all is wanted."""
    if is_verbose():
        typer.echo(text, err=True)


def stderr_console() -> Console:
    """Standard error as a rich console for progress and notes, that takes text literally; without a word if quiet."""
    from rich.console import Console

    # Not by FORCE_COLOR, which notebooks set: that asks for colour, and bars move the cursor.
    moving = sys.stderr.isatty()
    return Console(stderr=True, markup=False, highlight=False, emoji=False, quiet=is_quiet(), force_terminal=moving)


def _choose(value: bool, level: Verbosity) -> bool:
    if value:
        if _chosen.get() not in (Verbosity.normal, level):
            raise typer.BadParameter("--quiet and --verbose contradict each other")
        _chosen.set(level)
    return value


def _be_quiet(value: bool) -> bool:
    if _choose(value, Verbosity.quiet):
        logging.getLogger("mixerzoo").setLevel(logging.ERROR)
    return value


def _be_verbose(value: bool) -> bool:
    fresh = not is_verbose()
    if _choose(value, Verbosity.verbose) and fresh:
        detail(f"mixerzoo {__version__}, Python {platform.python_version()}, PyTorch {_torch_version()}")
    return value


def _torch_version() -> str:
    """Without importing it."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return "from an unknown package"


QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_be_quiet, expose_value=False, help="Print nothing but results and errors."),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_be_verbose,
        expose_value=False,
        help="Print what was chosen too, and the traceback of an error.",
    ),
]


def options() -> list[Any]:
    """Both options, for a command that typer has made."""
    single = typer.Typer(add_completion=False)

    @single.command()
    def _both(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
        pass

    return list(typer.main.get_command(single).params)
