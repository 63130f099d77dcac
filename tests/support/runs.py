"""A training run small enough for a test: real text, real files, seconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mixerzoo.checkpoints import save_checkpoint
from mixerzoo.data import TextTokenizer
from mixerzoo.recipe.building import build
from mixerzoo.recipe.read import load_recipe
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.training.records import MEASURED

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
OVERRIDES = (
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.head_dim=8",
    "data.source.max_bytes=200000",
    "data.tokenizer={name: bytes}",
    "data.sequence_length=32",
    "train.steps=12",
    "train.batch_size=4",
    "train.accumulation=2",
    "train.log_interval=2",
    "train.checkpoint_interval=4",
    "eval.interval=6",
    "eval.max_sequences=5",
)


def tiny_recipe(*overrides: str) -> Recipe:
    """The quickstart, made tiny, with further overrides."""
    return load_recipe(QUICKSTART, (*OVERRIDES, *overrides))


def checkpoint_in(directory: Path, mixer: str = "residual") -> Path:
    """A checkpoint of the tiny recipe with initial weights and the tokenizer of bytes."""
    save_checkpoint(build(tiny_recipe(f"mixer={{name: {mixer}}}")), directory)
    TextTokenizer.for_bytes().save(directory)
    return directory


#: What `mixerzoo train` records of a run beside the figures that `mixerzoo eval` gives again.
RECORDS = (
    "steps",
    "seed",
    "tokens",
    "train_seconds",
    "validation_seconds",
    "train_flops",
    "tokens_per_second",
    "mfu",
    "peak_memory_bytes",
    "device",
    "devices",
    "threads",
)


def fingerprint(directory: Path) -> dict[str, Any]:
    """All that must be the same bits in two equal runs."""
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        for name in MEASURED:
            line.pop(name)
    result = json.loads((directory / "result.json").read_text())
    for name in MEASURED:
        result.pop(name)
    return {
        "weights": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
        "metrics": metrics,
        "result": result,
    }
