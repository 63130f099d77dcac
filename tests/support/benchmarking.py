"""Small benchmarks, from Python and by the command."""

from __future__ import annotations

from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from mixerzoo.benchmark import read_benchmark
from mixerzoo.benchmark.plan import Benchmark
from mixerzoo.cli import app

SMALL = (
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.vocab_size=300",
    "data.tokenizer={name: bytes}",
)
MIXERS = "depth_attention, {name: denseformer, dilation: 2}, yoco"
COUNTS = {"batch": 2, "tokens": 12, "rounds": 2}


def small(mixers: str = MIXERS, *overrides: str, **options: Any) -> Benchmark:
    """A plan of little work."""
    return read_benchmark("bench", (*SMALL, *overrides), mixers=mixers, **{**COUNTS, **options})


def invoke(*arguments: str) -> Result:
    """Run the command on as little."""
    return CliRunner().invoke(app, ["bench", *SMALL, "--tokens=12", "--rounds=1", *arguments])
