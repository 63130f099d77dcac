"""`mixerzoo recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixerzoo.cli.common import JsonOption, console, print_json, table
from mixerzoo.cli.completion import complete_recipe
from mixerzoo.errors import RecipeError, did_you_mean
from mixerzoo.files import write_text

_NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Show this one.", show_default=False, autocompletion=complete_recipe),
]
_CopyOption = Annotated[
    Path | None, typer.Option("--copy", metavar="DIR", help="Copy it into a directory.", show_default=False)
]


def command(name: _NameArgument = None, copy: _CopyOption = None, as_json: JsonOption = False) -> None:
    """List the recipes that come with mixerzoo, show or copy one.

    A name works wherever the path of a recipe does, and as the base of one of your own.
    """
    from mixerzoo.recipe import recipes_at_hand, summary_of

    known = recipes_at_hand()
    if name is None:
        if copy is not None:
            raise RecipeError("--copy takes the name of a recipe; `mixerzoo recipes` lists them")
        summaries = {each: summary_of(path) for each, path in known.items()}
        if as_json:
            print_json([{"name": each, "summary": text} for each, text in summaries.items()])
            return
        listing = table("Name", "")
        listing.columns[0].no_wrap = True
        for each, text in summaries.items():
            listing.add_row(each, text)
        console().print(listing)
        return
    if name not in known:
        raise RecipeError(f"no recipe {name!r} comes with mixerzoo{did_you_mean(name, known)}; see `mixerzoo recipes`")
    text = known[name].read_text(encoding="utf-8")
    if copy is None:
        if as_json:
            print_json({"name": name, "summary": summary_of(known[name]), "text": text})
        else:
            typer.echo(text, nl=False)
        return
    target = copy / f"{name}.yaml"
    if target.exists():
        raise RecipeError(f"{target} is there already, and stays as it is; choose another directory")
    copy.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    if as_json:
        print_json({"name": name, "copied_to": str(target)})
    else:
        typer.echo(f"Copied to {target}")
