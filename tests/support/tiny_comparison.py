"""Comparisons of tiny runs, by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from mixerzoo.cli import app
from runs import OVERRIDES, QUICKSTART

TINY = [*(o for o in OVERRIDES if not o.startswith(("train.", "eval.interval"))), "train.steps=2", "train.batch_size=2"]


def compare(out: Path, *arguments: str) -> Any:
    """What the command ends with, of the quickstart made tiny."""
    recipe = [str(QUICKSTART), *TINY, "train.log_interval=1"]
    return CliRunner().invoke(app, ["compare", *recipe, "--out", str(out), *arguments])
