"""`mixerzoo bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixerzoo.cli.common import DeviceOption, JsonOption, OverridesArgument, console, pick_device, print_json, table

if TYPE_CHECKING:
    from mixerzoo.benchmark import Benchmark

_Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe file, or a name that `mixerzoo recipes` lists; its text is not read."),
]
_Mixers = Annotated[
    str | None,
    typer.Option(
        "--mixers",
        help="As in `compare`; default: the recipe's `compare.mixers`, or its own. Residual is always among them.",
        show_default=False,
    ),
]
_Peers = Annotated[
    str | None,
    typer.Option("--peers", help="`transformers`: its own model on the same weights, too.", show_default=False),
]
_Phases = Annotated[str, typer.Option("--phases", help="What is timed, of these, with commas between.")]
_Dtype = Annotated[
    str, typer.Option("--dtype", help="E.g. bfloat16: training is then under autocast, with weights in float32.")
]
_Compile = Annotated[bool, typer.Option("--compile", help="Run everything through torch.compile.")]
_Batch = Annotated[int, typer.Option("--batch", min=1, max=2**16, help="Rows.")]
_Tokens = Annotated[int, typer.Option("--tokens", min=1, max=2**24, help="Of a row: trained on, or read as a prompt.")]
_Rounds = Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="In each of which everything is timed once.")]
_Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=4096, help="On a CPU; default: PyTorch's.", show_default=False)
]
_Out = Annotated[Path | None, typer.Option("--out", help="A file that gets the JSON, too.", show_default=False)]


def command(
    recipe: _Recipe = "bench",
    overrides: OverridesArgument = None,
    mixers: _Mixers = None,
    peers: _Peers = None,
    phases: _Phases = "train,prefill,decode",
    device: DeviceOption = None,
    dtype: _Dtype = "float32",
    compile: _Compile = False,
    batch: _Batch = 2,
    tokens: _Tokens = 1024,
    rounds: _Rounds = 5,
    threads: _Threads = None,
    out: _Out = None,
    as_json: JsonOption = False,
) -> None:
    """Time mixers beside plain residual: a training step, a prompt, and writing.

    All share the decoder's weights and take turns in every round, so that a busy machine slows all alike; a ratio is the
    median over rounds of the ratio within one. Exit code 1: something could not be run, and the rest is reported.
    """
    import torch

    from mixerzoo.benchmark import read_benchmark
    from mixerzoo.files import check_writable_file  # noqa: F401

    if threads is not None:
        torch.set_num_threads(threads)
    benchmark = read_benchmark(
        recipe,
        overrides or (),
        mixers=mixers,
        peers=_names(peers),
        phases=_names(phases),
        device=pick_device(device),
        dtype=dtype,
        compile=compile,
        batch=batch,
        tokens=tokens,
        rounds=rounds,
    )
    found = _run(benchmark)
