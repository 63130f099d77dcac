"""The command line. Each command is a module with a function ``command``, imported when it is called.

So `mixerzoo --help` costs what typer costs, whatever the commands import.
"""

from __future__ import annotations

import errno
import importlib
import sys
from inspect import getdoc
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mixerzoo.cli.common import report
from mixerzoo.cli.verbosity import QuietOption, VerboseOption, options, reset
from mixerzoo.errors import MixerzooError
from mixerzoo.version import __version__

#: name → (module, what `mixerzoo --help` says). The ``command``'s own docstring is its ``--help``.
COMMANDS = {
    "list": ("mixerzoo.cli.list_mixers", "List the installed mixers."),
    "show": ("mixerzoo.cli.show", "Show a mixer's card, its options, and what to put in a recipe."),
    "describe": ("mixerzoo.cli.describe", "Say what a recipe's decoder costs and who reads whom in it."),
    "train": ("mixerzoo.cli.train", "Train the decoder of a recipe."),
    "compare": ("mixerzoo.cli.compare", "Compare mixers over seeds, with intervals and a report."),
    "bench": ("mixerzoo.cli.bench", "Time mixers beside plain residual, and measure their memory."),
    "eval": ("mixerzoo.cli.eval", "Evaluate trained decoders on text and tasks, side by side."),
    "generate": ("mixerzoo.cli.generate", "Continue a text with a trained decoder."),
    "inspect": ("mixerzoo.cli.inspect", "Show what a trained mixer learned."),
    "import": ("mixerzoo.cli.import_model", "Make a checkpoint of a pretrained model, with any mixer."),
    "export": ("mixerzoo.cli.export", "Write a checkpoint as a stock model."),
    "new": ("mixerzoo.cli.new", "Write a package with a new mixer, ready to install."),
    "check": ("mixerzoo.cli.check", "Hold an installed mixer to every clause of the kit."),
    "recipes": ("mixerzoo.cli.recipes", "List the recipes that come with mixerzoo, show or copy one."),
    "schema": ("mixerzoo.cli.schema", "Print the JSON Schema of recipes, for editors."),
}

# Plain help and messages: they can be grepped, and no box breaks a path in two.
_STYLE: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class LazyGroup(TyperGroup):
    """Imports a command when it is called, and turns what the user can put right into a message and exit code 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options that stand before the command; how much is said starts anew."""
        reset()
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the command itself in the place of its summary, then resolve as usual."""
        if args and args[0] in COMMANDS:
            function = importlib.import_module(COMMANDS[args[0]][0]).command
            single = typer.Typer(add_completion=False, **_STYLE)
            single.command(args[0], help=getdoc(function))(function)
            made: Any = typer.main.get_command(single)
            made.params += options()
            self.commands[args[0]] = made
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MixerzooError as error:
            report(error)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader went away, which is no fault of ours
            report(error)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    help="mixerzoo: a zoo of cross-layer mixers for decoder language models.",
    **_STYLE,
)
for _name, (_module, _summary) in COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mixerzoo {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    pass


def main() -> None:
    """Run the command line on ``sys.argv``; does not return.

    Exit codes (docs/command-line.md): 0, 1 if `check` finds a broken clause, a run of `compare` fails or `bench`
    cannot run something, 2 for what the user can put right, 130 after Ctrl-C, 143 after SIGTERM. Any other failure is
    a bug and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a letter of an equation shows a question mark.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()
