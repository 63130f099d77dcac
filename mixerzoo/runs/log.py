"""metrics.jsonl: a line of JSON for each logged step and each validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerzoo import files
from mixerzoo.errors import RunError
from mixerzoo.files import finite

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """The metrics of one run.

    Every checkpoint holds a copy, which a resumed run begins with: what was written after the checkpoint is written
    again, and what a power cut made of the end of the file does not matter.

    Args:
        directory: the run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / METRICS_FILE

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: it cannot be written.
        """
        with files.named(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite(line), allow_nan=False) + "\n")

    def insert_validation(self, line: Mapping[str, Any]) -> None:
        """Add a validation after the newest step: before the line of that step's loss, as in training.

        Raises:
            OSError: it cannot be written.
        """
        lines = read_metrics_file(self.path)
        late = [entry for entry in lines if entry["step"] == line["step"]]
        files.write_text(self.path, _text([entry for entry in lines if entry not in late] + [dict(line), *late]))

    def copy_to(self, folder: Path) -> None:
        """Copy the file into a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        with files.named(folder / METRICS_FILE):
            (folder / METRICS_FILE).write_bytes(data)

    def restore(self, folder: Path | None) -> None:
        """Go back to the lines that a checkpoint has.

        Args:
            folder: the checkpoint; None: the beginning.

        Raises:
            OSError: it cannot be written.
        """
        if folder is None:
            self.path.unlink(missing_ok=True)
        else:
            files.write_bytes(self.path, (folder / METRICS_FILE).read_bytes())


def read_metrics_file(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each with its ``step``; one that is still being written is left out.

    Args:
        path: the file; where it is missing there are no lines yet.

    Raises:
        RunError: it cannot be read, or a line before the last is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line.decode("utf-8"))
            entry["step"] + 0
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise RunError(f"{path}, line {number}: damaged: it is not a line of metrics") from error
        entries.append(entry)
    return entries


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(finite(line), allow_nan=False) + "\n" for line in lines)
