"""Checkpoints that are malformed in every way end in words, soon and in little memory, whichever command reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "malformed_checkpoints.py"
SECONDS = 20
MEBIBYTES = 2048


def outcomes(directory: Path, every: int) -> list[dict[str, Any]]:
    """A record of each run; one that ended the process says so, and the next goes on after it."""
    found: list[dict[str, Any]] = []
    first = 0
    while True:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(directory), str(every), str(first)],
            capture_output=True,
            check=False,
            text=True,
        )
        begun = None
        for line in done.stdout.splitlines():
            record = json.loads(line)
            begun = record if "begins" in record else None
            if begun is None:
                found.append(record)
        if begun is None:
            assert done.returncode == 0, done.stderr[-3000:]
            return found
        found.append({**begun, "crash": f"the process ended with {done.returncode}: {done.stderr[-1500:]}"})
        first = begun["begins"] + 1


def wrong(record: dict[str, Any]) -> str | None:
    """What is wrong with a run, if anything."""
    if record["crash"]:
        return f"a traceback: {record['crash']}"
    if record["seconds"] > SECONDS:
        return f"it took {record['seconds']} s"
    if record["peak_mib"] > MEBIBYTES:
        return f"it took {record['peak_mib']} MiB"
    if not record["refused"] and not record["same"] and not record["may_pass"]:
        return f"it was accepted, and gave {record['answer']}"
    return None


def check(records: list[dict[str, Any]]) -> None:
    faults = [f"{r['case']} ({r['command']}): {fault}" for r in records if (fault := wrong(r)) is not None]
    assert not faults, "\n".join(faults)


def test_a_sample_of_malformed_checkpoints(tmp_path: Path) -> None:
    records = outcomes(tmp_path / "work", every=41)
    assert len({record["case"] for record in records}) >= 20
    check(records)


@pytest.mark.slow
def test_malformed_checkpoints(tmp_path: Path) -> None:
    records = outcomes(tmp_path / "work", every=1)
    assert len({record["case"] for record in records}) >= 200
    assert sum(record["refused"] for record in records) >= 400
    check(records)
