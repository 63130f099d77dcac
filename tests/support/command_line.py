"""The command line, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from typer.testing import CliRunner, Result

from mixerzoo.cli import app


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
