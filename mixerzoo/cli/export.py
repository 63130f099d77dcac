"""`mixerzoo export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What can be written."""

    llama = "llama"
    mistral = "mistral"
    qwen2 = "qwen2"
    qwen3 = "qwen3"


def command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A checkpoint whose mixer is residual.", show_default=False),
    ],
    *,
    format: Annotated[Format, typer.Option("--format", help="The kind of stock model.", show_default=False)],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The new checkpoint; it must not exist.", show_default=False)
    ],
) -> None:
    """Write a checkpoint as a stock model, which needs no mixerzoo.

    Only the plain residual stream is a stock model: any other mixer is refused.
    """
    from mixerzoo.exchange import export_checkpoint

    companions = export_checkpoint(directory, out, format.value)
    typer.echo(f"{directory} → {out}: a stock {format.value} model")
    if companions:
        typer.echo(f"Carried over: {', '.join(companions)}")
