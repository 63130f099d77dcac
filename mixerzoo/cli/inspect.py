"""`mixerzoo inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixerzoo.cli.common import (
    DeviceOption,
    JsonOption,
    check_out,
    console,
    pick_device,
    print_json,
    refuse_unread,
    table,
)
from mixerzoo.errors import MixerzooError, RunError
from mixerzoo.files import to_json, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from mixerzoo.experiments import Inspection, SiteWeights

_RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a checkpoint.")]
_TextOption = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="A UTF-8 text file; default: the run's validation text."),
]
_PromptOption = Annotated[str | None, typer.Option("--prompt", help="Weights of each token of this text.")]
#: Between two columns of a table.
_GAP = 3
#: Bars, and tokens, take at most one part in so many of a line.
_SHARE = 4
_WINDOWS = 8
_PAGE, _FIGURES = "inspect.html", "inspect.json"
_WindowsOption = Annotated[
    int | None,
    typer.Option(
        "--windows", metavar="N", min=1, max=1 << 20, help=f"Sequences of a text to read at most; default: {_WINDOWS}."
    ),
]
_OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write inspect.html and inspect.json.", show_default=False)
]
_OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files of --out that are there.")]


def command(
    run: _RunArgument,
    text: _TextOption = None,
    prompt: _PromptOption = None,
    windows: _WindowsOption = None,
    device: DeviceOption = None,
    out: _OutOption = None,
    overwrite: _OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a trained mixer learned.

    For each site the weights of its sources, mean and spread over text, and the loss if the head read the stream
    after each step.
    """
    if prompt is not None:
        refuse_unread("--prompt is read whole, as one sequence", windows=windows)
    if overwrite and out is None:
        raise MixerzooError("--overwrite is of files that --out names; give both")
    if not run.is_dir():
        raise RunError(f"{run}: no such directory")
    from mixerzoo.experiments import inspect_checkpoint, inspection_page
    from mixerzoo.process import full_precision

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name in (_PAGE, _FIGURES):
            check_out(out / name, overwrite)
    where = pick_device(device)
    with full_precision():
        found = inspect_checkpoint(run, text=text, prompt=prompt, max_windows=windows or _WINDOWS, device=where)
    try:
        if out is not None:
            write_text(out / _PAGE, inspection_page(found, str(run)))
            write_text(out / _FIGURES, to_json(found.to_dict()))
    finally:
        # Shown even where the disk has become full since.
        if as_json:
            print_json(found.to_dict())
        else:
            _print(found, str(run))


def _print(found: Inspection, run: str) -> None:
    out = console()
    out.print(f"{run}: {found.mixer}, {found.num_tokens:,} tokens", style="bold", soft_wrap=True)
    if found.sites:
        _print_sites(out, found)
        if found.tokens is not None:
            for site in found.sites:
                _print_tokens(out, found.tokens, site)
    else:
        out.print(f"The mixer {found.mixer} shows no weights: it weighs no sources, or does not say how.")
    if found.depth_loss is None:
        out.print("No loss after each step: its layers do not read one stream.")
        return
    depths = table("Step", "Loss, if the head read there")
    for step, loss in enumerate(found.depth_loss):
        depths.add_row(str(step), f"{loss:.4f}")
    out.print("", depths, sep="\n")


def _print_sites(out: Console, found: Inspection) -> None:
    from rich.columns import Columns
    from rich.text import Text

    listing = table("Site", "Weights", "Source: mean ± spread")
    listing.columns[0].no_wrap = True
    most = max(len(site.mean) for site in found.sites)
    listing.columns[1].width = max(len("Weights"), min(most, out.width // _SHARE))
    for site in found.sites:
        bars = Text("".join(_shade(value) for value in site.mean))
        pairs = zip(site.sources, site.mean, site.spread, strict=True)
        # Side by side where there is room, and never broken between a name and its figures.
        told = [Text(f"{name}: {mean:.3f} ± {std:.3f}", no_wrap=True) for name, mean, std in pairs]
        listing.add_row(site.name, bars, Columns(told, padding=(0, 2)))
    out.print(listing)


def _print_tokens(out: Console, tokens: Sequence[str], site: SiteWeights) -> None:
    """How each token weighs the sources of a site, of which as many stand beside each other as there is room for."""
    from rich.cells import cell_len

    if site.per_token is None:
        return
    out.print(f"\n{site.name}", style="bold")
    shown = list(map(repr, tokens))
    first = min(max(map(cell_len, ("Token", *shown))), out.width // _SHARE)
    widths = [max(len(_weight(1.0)), *map(len, name.split())) for name in site.sources]
    for begin, end in _blocks(widths, out.width - first):
        rows = table("Token", *site.sources[begin:end])
        rows.columns[0].width = first
        for column, width in zip(rows.columns[1:], widths[begin:end], strict=True):
            column.min_width = width
        for token, weights in zip(shown, site.per_token, strict=True):
            rows.add_row(token, *map(_weight, weights[begin:end]))
        out.print(*([""] if begin else []), rows, sep="\n")


def _blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """From where to where columns of these widths fit into a line, line by line; one at least."""
    begin, taken = 0, 0
    for number, width in enumerate(widths):
        if number > begin and taken + _GAP + width > room:
            yield begin, number
            begin, taken = number, 0
        taken += _GAP + width
    yield begin, len(widths)


def _weight(value: float) -> str:
    return f"{_shade(value)} {value:.3f}"


def _shade(value: float) -> str:
    """A cell of the heat map: the darker, the larger the weight."""
    return " ░▒▓█"[min(4, round(4 * abs(value)))]
