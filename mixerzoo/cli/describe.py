"""`mixerzoo describe`."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import (
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    console,
    print_json,
    refuse_twice,
    refuse_unread,
    table,
    tell_recipe,
)
from mixerzoo.errors import MixerzooError

if TYPE_CHECKING:
    from mixerzoo.describe import Description


def command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, help="How many train together.", show_default=False),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option("--parallel", help="ddp or fsdp, as train.parallel.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="What each device is, as H100: how long does the run take?", show_default=False),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option("--mfu", help="Share of the GPU's peak that is assumed; default 0.4.", show_default=False),
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Draw who reads whom, as SVG on standard output.")] = False,
) -> None:
    """Say what a recipe's decoder costs and who reads whom in it.

    Each cost stands beside that of a plain residual decoder of the same sizes. No weight is allocated.
    """
    from mixerzoo.describe import MFU, describe, diagram
    from mixerzoo.recipe import build, load_recipe

    if svg:
        if as_json:
            raise MixerzooError("--svg and --json are two outputs; ask for one")
        reason = "--svg draws who reads whom, whatever it is trained on"
        refuse_unread(reason, devices=devices, parallel=parallel, gpu=gpu, mfu=mfu)
    if mfu is not None and (gpu is None or not 0 < mfu <= 1):
        raise MixerzooError("--mfu is a share, above 0 and at most 1, of the peak of what --gpu names; give both")
    if parallel is not None:
        refuse_twice("--parallel", overrides or (), "train.parallel")
    asked = [] if parallel is None else [f"train.parallel={parallel}"]
    tell_recipe(recipe, overrides or ())
    found = load_recipe(recipe, (*(overrides or ()), *asked))
    if svg:
        typer.echo(diagram(build(found, device="meta")))
        return
    description = describe(found, devices, gpu, MFU if mfu is None else mfu)
    if as_json:
        print_json({"recipe": recipe, **description.to_dict()})
    else:
        _print(recipe, description)


def _print(recipe: str, found: Description) -> None:
    from mixerzoo.describe import BASELINE

    out = console()
    shape = found.shape
    name = found.mixer["name"]
    chosen = ", ".join(f"{key} {value}" for key, value in found.mixer.items() if key != "name" and value is not None)
    steps = "" if shape.num_steps == shape.num_layers else f" run as {shape.num_steps} steps"
    dtype = str(found.dtype).removeprefix("torch.")
    out.print(f"{recipe}: {name}{f' ({chosen})' if chosen else ''}", style="bold", soft_wrap=True)
    out.print(
        f"{shape.num_layers} layers{steps}, hidden {shape.hidden_size}, {shape.num_heads} query and "
        f"{shape.num_kv_heads} key/value heads of {shape.head_dim}, vocabulary {shape.vocab_size}; "
        f"sequences of {found.sequence_length} tokens; bytes in {dtype}"
    )
    listing = table("", name) if name == BASELINE else table("", name, BASELINE, "Extra")
    for column in listing.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    own, base, extra = asdict(found.costs), asdict(found.baseline), found.extra_percent()
    for key, (label, shown) in _ROWS.items():
        cells = [shown(own[key])]
        if name != BASELINE:
            cells += [shown(base[key]), _percent(extra[key], own[key])]
        listing.add_row(label, *cells)
    out.print("", listing, "", sep="\n")
    _print_training(found)
    out.print(found.picture, soft_wrap=True)


def _print_training(found: Description) -> None:
    run, out = found.training, console()
    listing = table("Training", "")
    listing.columns[1].justify = "right"
    listing.columns[1].no_wrap = True
    on = "" if run.devices == 1 else f" on {run.devices} devices"
    listing.add_row(f"Tokens of the run{on}", _count(run.tokens))
    listing.add_row("Tokens per step", _count(run.tokens_per_step))
    listing.add_row("FLOPs of the run", f"{run.flops:.3g}")
    if run.expected is not None:
        where = f"{run.devices} × {run.expected.gpu} at {run.expected.mfu:.0%} of the peak"
        listing.add_row(f"Time on {where}", _duration(run.expected.seconds))
    if run.epochs is None or run.text_tokens is None:
        bound = "" if run.least_epochs is None else f"{run.least_epochs:,.3g} at least, "
        listing.add_row("Readings of the text", f"{bound}not known before its first run here")
    else:
        listing.add_row("Tokens of the text, as last prepared", _count(run.text_tokens))
        listing.add_row("Readings of the text", f"{run.epochs:,.3g}")
    listing.add_row("Memory of weights and gradients", _size(run.memory.weights + run.memory.gradients))
    listing.add_row("Memory of the optimizer's state", _size(run.memory.optimizer))
    if run.memory.average:
        listing.add_row("Memory of the mean of the weights", _size(run.memory.average))
    if run.memory.gathered:
        listing.add_row("Memory of what is gathered", _size(run.memory.gathered))
    listing.add_row("Memory of activations, an estimate", _size(run.memory.activations))
    each = "" if run.devices == 1 else " on each device"
    listing.add_row(f"Memory in all{each}, an estimate", _size(run.memory.total))
    out.print(listing, "", sep="\n")
    for text in run.notices:
        out.print(f"Notice: {text}", soft_wrap=True)
    if run.notices:
        out.print()


def _count(value: int) -> str:
    return f"{value:,}"


def _size(value: int) -> str:
    size, unit = float(value), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.4g} {unit}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:,.3g} seconds"


def _percent(extra: float | None, own: int) -> str:
    if extra is None:
        return "new" if own else "0 %"
    if not extra:
        return "0 %"
    # Three digits that count, and never an exponent.
    decimals = max(0, 2 - math.floor(math.log10(abs(extra))))
    return f"{extra:+,.{decimals}f} %"


_ROWS: dict[str, tuple[str, Any]] = {
    "decoder_parameters": ("Decoder parameters", _count),
    "mixer_parameters": ("Mixer parameters", _count),
    "parameters": ("Parameters", _count),
    "weight_bytes": ("Memory of the weights", _size),
    "kv_bytes_per_token": ("KV bytes per token", _count),
    "cache_bytes": ("KV cache of a sequence", _size),
    "in_flight_bytes_per_token": ("In-flight bytes per token", _count),
    "flops_per_token": ("FLOPs per token, forward", _count),
}
