"""The command line, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from typer.testing import CliRunner, Result

from mixerzoo.cli import app

RECIPE: dict[str, Any] = {
    "model": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "mixer": {"name": "depth_attention", "stride": 2},
    "data": {"source": {"name": "stdlib"}, "tokenizer": {"name": "bytes"}, "sequence_length": 64},
    "train": {"steps": 1, "batch_size": 1, "learning_rate": 0.001},
}


def run(*arguments: object, columns: int = 80, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env={"COLUMNS": str(columns)})


def output_of(*arguments: object, columns: int = 80, stdin: str | None = None) -> str:
    """What is printed where nothing else is said."""
    result = run(*arguments, columns=columns, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def error_of(*arguments: object, columns: int = 80, stdin: str | None = None) -> str:
    """The words of an error of the user."""
    result = run(*arguments, columns=columns, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def subprocess_run(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A real run, in an environment without a terminal's settings."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        check=False,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


def on_two_ranks(script: ModuleType, folders: Iterable[Path]) -> str:
    """What a script prints that torchrun starts twice with these folders."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script.__file__), *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
