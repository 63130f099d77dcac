"""`mixerzoo train`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mixerzoo.cli.common import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    pick_device,
    print_json,
    rank_of,
    tell_recipe,
)
from mixerzoo.cli.results import print_result
from mixerzoo.cli.verbosity import detail, hint

_OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Run directory; default: runs/ and the recipe's name.", show_default=False),
]
_ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in the directory from its newest checkpoint.")
]
_OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the directory.")]
_SaveOnInterruptOption = Annotated[
    bool,
    typer.Option(
        "--save-on-interrupt/--no-save-on-interrupt",
        help="Whether Ctrl-C and SIGTERM save a checkpoint; a second one ends at once.",
    ),
]


def command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: _OutOption = None,
    resume: _ResumeOption = False,
    overwrite: _OverwriteOption = False,
    save_on_interrupt: _SaveOnInterruptOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train the decoder of a recipe.

    The run directory holds the resolved recipe, metrics.jsonl, checkpoints, the final weights and
    tokenizer, and a model card. At the end the validation text is scored exactly, beside two yardsticks.
    """
    from mixerzoo.recipe import find_recipe, load_recipe
    from mixerzoo.runs import RunDirectory

    directory = out if out is not None else Path("runs") / find_recipe(recipe).stem
    if resume:
        # Which plugin is missing is in the run's records, not in the recipe.
        RunDirectory(directory).require_mixer()
    tell_recipe(recipe, overrides or ())
    detail(f"run directory: {directory.absolute()}")
    experiment = load_recipe(recipe, overrides or ())
    from mixerzoo.cli.progress import BarReporter
    from mixerzoo.training import Terminated, check_apart, take_device, train

    take_device()
    pick_device(None)
    if overwrite:
        check_apart(experiment, directory, recipe)
    reporter = BarReporter()
    try:
        with reporter:
            result = train(
                experiment,
                directory,
                resume=resume,
                overwrite=overwrite,
                save_on_interrupt=save_on_interrupt,
                command=shlex.join(["mixerzoo", *sys.argv[1:]]),
                reporter=reporter,
            )
    except (KeyboardInterrupt, Terminated) as error:
        if reporter.last_step is not None and rank_of() == 0:
            again = ["mixerzoo", "train", recipe, *(overrides or ()), "--out", str(directory), "--resume"]
            word = "Interrupted" if isinstance(error, KeyboardInterrupt) else "Terminated"
            _say_how_to_go_on(directory, f"{word} after step {reporter.last_step}", shlex.join(again))
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 143) from error
    if rank_of() != 0:
        return
    if as_json:
        print_json(result)
        return
    print_result(result)
    hint(f"\nSaved in {directory}. Try: mixerzoo generate {shlex.quote(str(directory))} --prompt 'def '")


def _say_how_to_go_on(directory: Path, what: str, command: str) -> None:
    from mixerzoo.runs import RunDirectory, complete_checkpoints

    saved = complete_checkpoints(RunDirectory(directory).checkpoints)
    start = f"after step {saved[-1][0]}, the newest checkpoint" if saved else "at the beginning: no checkpoint yet"
    typer.echo(f"{what}. This goes on {start}:\n  {command}", err=True)
