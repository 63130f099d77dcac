"""`mixerzoo show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import JsonOption, console, print_json, table
from mixerzoo.cli.completion import complete_mixer
from mixerzoo.errors import MixerError, MixerzooError

if TYPE_CHECKING:
    from rich.console import Console

    from mixerzoo.describe import Option
    from mixerzoo.mixer import MixerEntry


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A mixer; `mixerzoo list` shows them.", autocompletion=complete_mixer),
    ],
    as_json: JsonOption = False,
    as_html: Annotated[
        bool,
        typer.Option("--html", help="Print a page with who reads whom as a drawing; one file that needs nothing else."),
    ] = False,
) -> None:
    """Show a mixer's card, its options, and what to put in a recipe."""
    from mixerzoo.mixer import load_registry

    if as_html and as_json:
        raise MixerzooError("--html and --json are two outputs; ask for one")
    entry = load_registry().get(name)
    if as_html:
        typer.echo(_page(entry))
    elif as_json:
        print_json(_to_dict(entry))
    else:
        _print(entry)


def _page(entry: MixerEntry) -> str:
    """All that is known of a mixer as HTML.

    Raises:
        PluginError: the mixer fails.
    """
    from mixerzoo.describe import mixer_page
    from mixerzoo.mixer import blamed

    problem = f"{entry.plugin}: the page of mixer {entry.mixer.name!r} cannot be made"
    with blamed(entry.plugin, "making its page", problem):
        return mixer_page(entry)


def _options(entry: MixerEntry) -> tuple[list[Option], str]:
    """A mixer's options, and what to put in a recipe.

    Raises:
        PluginError: they cannot be told from its ``Config``.
    """
    from mixerzoo.describe import options, snippet
    from mixerzoo.mixer import blamed

    problem = f"{entry.plugin}: the options of mixer {entry.mixer.name!r} cannot be shown"
    with blamed(entry.plugin, "showing its options", problem):
        return options(entry.mixer), snippet(entry.mixer)


def _to_dict(entry: MixerEntry) -> dict[str, Any]:
    card = entry.mixer.card
    found, recipe = _options(entry)
    return {
        "name": entry.mixer.name,
        "title": card.title,
        "summary": card.summary,
        "paper": card.paper,
        "equation": card.equation,
        "family": card.family,
        "acts_on": card.acts_on,
        "parameters": card.parameters,
        "kv_bytes_per_token": card.kv_bytes,
        "in_flight_bytes_per_token": card.in_flight_bytes,
        "needs_own_kv": _needs_own_kv(entry),
        "options": [option._asdict() for option in found],
        "dialects": dict(card.dialects),
        "neutral": card.neutral,
        "notes": card.notes,
        "recipe": recipe,
        "distribution": entry.distribution,
        "version": entry.version,
        "plugin": entry.plugin,
    }


def _needs_own_kv(entry: MixerEntry) -> bool | None:
    """Whether the plan that a mixer makes by default says so; None where it cannot be told without options of a recipe.

    Raises:
        PluginError: the mixer fails.
    """
    import torch

    from mixerzoo.mixer import DecoderShape, blamed

    if any(field.is_required() for field in entry.mixer.Config.model_fields.values()):
        return None
    shape = DecoderShape(8, 4, 2, 1, 4, order=(0, 1, 2, 3), norm_eps=1e-6, vocab_size=8)
    problem = f"{entry.plugin}: the plan of mixer {entry.mixer.name!r} cannot be shown"
    with blamed(entry.plugin, "showing its plan", problem), torch.device("meta"):
        try:
            return entry.mixer(entry.mixer.Config(), shape).plan().needs_own_kv
        except MixerError:
            # It does not take a decoder of four layers.
            return None


def _print(entry: MixerEntry) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from mixerzoo.describe import LETTERS
    from mixerzoo.yaml_text import one_line

    card = entry.mixer.card
    # What may fail comes before the first line.
    found, recipe = _options(entry)
    own_kv = _needs_own_kv(entry)
    out = console()
    out.print(Text.assemble((entry.mixer.name, "bold"), f"  {card.title}"))
    out.print(card.summary)
    _heading(out, "Equation")
    out.print(Padding(card.equation, (0, 0, 0, 2)))

    _heading(out, "Facts")
    facts = {
        "paper": card.paper,
        "family": card.family,
        "acts on": card.acts_on,
        "parameters": card.parameters,
        "KV bytes per token": card.kv_bytes,
        "in-flight bytes per token": card.in_flight_bytes,
        "needs own keys and values": "yes: no layer may borrow them" if own_kv else "",
        "plain residual at": card.neutral,
        "from": f"{entry.distribution} {entry.version} ({entry.plugin})",
    }
    _pairs(out, facts)
    out.print(Padding(Text(f"{LETTERS}.", "dim"), (0, 0, 0, 2)))

    _heading(out, "Options")
    if found:
        listing = table("Name", "Type", "Default", "Description")
        listing.columns[0].no_wrap = True
        for option in found:
            default = "required" if option.required else one_line(option.default)
            listing.add_row(option.name, option.type, default, option.description)
        out.print(listing)
    else:
        out.print("  none")
    if card.dialects:
        _heading(out, "Dialects")
        _pairs(out, dict(card.dialects))
    if card.notes:
        _heading(out, "Notes")
        out.print(Padding(card.notes, (0, 0, 0, 2)))
    _heading(out, "In a recipe")
    # Unwrapped and not indented, so that it can be pasted.
    out.print(recipe, soft_wrap=True)


def _heading(out: Console, text: str) -> None:
    out.print(f"\n{text}", style="bold")


def _pairs(out: Console, pairs: dict[str, str]) -> None:
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in pairs.items():
        if value:
            grid.add_row(key, value)
    out.print(Padding(grid, (0, 0, 0, 2)))
