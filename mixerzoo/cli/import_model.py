"""`mixerzoo import`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mixerzoo.cli.common import JsonOption, print_json, refuse_twice
from mixerzoo.cli.completion import complete_mixer
from mixerzoo.cli.verbosity import hint
from mixerzoo.errors import RecipeError

if TYPE_CHECKING:
    from mixerzoo.exchange import ImportReport
    from mixerzoo.mixer import MixerChoice

_MOST_NAMES = 4


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A directory with safetensors, a .gguf file, or a model's name on the Hugging Face hub.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MIXER.KEY=VALUE", help="Options of the mixer, e.g. mixer.stride=4.", show_default=False
        ),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The new checkpoint; it must not exist.", show_default=False)
    ],
    mixer: Annotated[
        str | None,
        typer.Option(
            "--mixer",
            metavar="NAME",
            help="Joins the layers; default: the source's own mixer.",
            autocompletion=complete_mixer,
        ),
    ] = None,
    k_norm: Annotated[
        Literal["pre_rope", "post_rope"] | None,
        typer.Option("--k-norm", help="Whether key norms come before or after RoPE; default: as in the source."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of the weights, e.g. float32; default: as the source stores them.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", min=0, max=2**32 - 1, help="Of the mixer's initial values.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint of a pretrained model, with its tokenizer.

    Llama, SmolLM2, Mistral, Qwen2, Qwen3 and checkpoints of the methods' reference implementations are read. With
    the mixer residual the result computes what the source computes; with another one it is said whether it still
    does.
    """
    choice = _choice(mixer, overrides or ())
    from mixerzoo.exchange import import_checkpoint

    report = import_checkpoint(source, out, mixer=choice, k_norm=k_norm, dtype=dtype, seed=seed)
    if seed and not report.new_parameters:
        hint("Note: --seed changes nothing here: the mixer has no parameters with initial values", err=True)
    if as_json:
        print_json(report._asdict())
    else:
        _print(report)


def _choice(name: str | None, overrides: Sequence[str]) -> MixerChoice | None:
    """The mixer of the options, or None for the source's own.

    Raises:
        RecipeError: it is not installed, or an option is wrong.
    """
    if name is None and not overrides:
        return None
    from mixerzoo.mixer import MixerChoice, check_choice
    from mixerzoo.recipe import YamlSource

    if name is not None:
        refuse_twice("--mixer", overrides, "mixer.name")
    named = [] if name is None else [f"mixer.name={json.dumps(name)}"]
    source = YamlSource("{}", "--mixer", [*named, *overrides])
    others = sorted(source.data.keys() - {"mixer"})
    if others:
        raise RecipeError(f"{others[0]}: only options of the mixer can be set here, e.g. mixer.stride=4")
    given = source.data["mixer"]
    if not isinstance(given, dict):
        raise RecipeError(f"mixer: expected a mapping of keys to values, got {given!r}")
    if "name" not in given:
        raise RecipeError(f"{overrides[0]}: an option of which mixer? Name it with --mixer, the source's own one too")
    found = check_choice(given)
    if isinstance(found, MixerChoice):
        return found
    raise RecipeError("\n".join(f"{source.where(p.below('mixer'))}: {p.message}" for p in found))


def _print(report: ImportReport) -> None:
    typer.echo(f"{report.source} → {report.directory}: {report.parameters:,} parameters, mixer {report.mixer}")
    if report.companions:
        typer.echo(f"Carried over: {', '.join(report.companions)}")
    if report.new_parameters:
        typer.echo(f"The mixer's {report.new_parameters:,} parameters have their initial values.")
    if report.left_out:
        shown = ", ".join(report.left_out[:_MOST_NAMES])
        more = f" and {len(report.left_out) - _MOST_NAMES} more" if len(report.left_out) > _MOST_NAMES else ""
        typer.echo(f"Left out, as this mixer has no place for them: {shown}{more}")
    typer.echo(_verdict(report))


def _verdict(report: ImportReport) -> str:
    """Whether it is still the source's model."""
    if report.same_model and report.rounded:
        return (
            f"It computes what the source computes, but for weights that were rounded from {report.source_dtype} to "
            f"{report.dtype}: logits differ by up to {_share(report.difference)} of the largest."
        )
    if report.same_model:
        return f"It computes what the source computes (largest difference of logits: {report.difference:.1e})."
    reason = ""
    if report.k_norm != report.source_k_norm:
        reason = f"its key norms are {report.k_norm}, the source's {report.source_k_norm}; "
    return (
        f"It is not the source model any more: {reason}logits differ by up to {_share(report.difference)} of the "
        "largest. Train on from here, with the recipe's key model.init_from."
    )


def _share(difference: float) -> str:
    return f"{difference:.1%}" if difference >= 1e-3 else f"{difference:.1e}"
