"""What each mixer learned to weigh, for the report: looked at once, in the first of its runs that is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixerzoo import files
from mixerzoo.errors import RunError
from mixerzoo.experiments.directory import ComparisonDirectory
from mixerzoo.experiments.grid import Cell
from mixerzoo.experiments.inspect import Inspection, inspect_checkpoint
from mixerzoo.files import read_object, to_json
from mixerzoo.process import full_precision

_SUFFIX = ".weights.json"
#: Sequences of validation text that are read.
_WINDOWS = 4
_DIGITS = 6


def look(directory: ComparisonDirectory, cells: Sequence[Cell], threads: int) -> None:
    """Look at what a mixer weighs, where that is not done yet, and keep it beside the run.

    Args:
        directory: holds the runs.
        cells: runs of one mixer that differ in the seed alone.
        threads: of a run.

    Raises:
        OSError: what was seen cannot be written.
    """
    cell = _looked_at(directory, cells)
    if cell is None or learned(directory, cells) is not None:
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with full_precision():
            found = _in_numbers(inspect_checkpoint(directory.run(cell).path, max_windows=_WINDOWS, depth_loss=False))
    except Exception as error:  # noqa: BLE001  a mixer may fail in any way to say what it does; the report says so
        found = {"num_tokens": 0, "sites": [], "error": f"{type(error).__name__}: {error}"}
    finally:
        torch.set_num_threads(before)
    record = {"run_id": directory.run(cell).run_id, "directory": cell.place.as_posix(), **found}
    files.write_text(directory.beside(cell, _SUFFIX), to_json(record))


def learned(directory: ComparisonDirectory, cells: Sequence[Cell]) -> dict[str, Any] | None:
    """What `look` kept; None where it did not yet.

    Args:
        directory: holds the runs.
        cells: runs of one mixer that differ in the seed alone.

    Raises:
        RunError: it cannot be read.
    """
    cell = _looked_at(directory, cells)
    path = None if cell is None else directory.beside(cell, _SUFFIX)
    if cell is None or path is None or not path.exists():
        return None
    found = read_object(path, RunError, "remove it, and the same command writes it again")
    # The run may have been removed and done again.
    return found if found.pop("run_id", None) == directory.run(cell).run_id else None


def _looked_at(directory: ComparisonDirectory, cells: Sequence[Cell]) -> Cell | None:
    return next((cell for cell in cells if directory.run(cell).finished), None)


def _in_numbers(found: Inspection) -> dict[str, Any]:
    sites = [
        {
            "name": site.name,
            "step": site.step,
            "layer": site.layer,
            "branch": site.branch,
            "acts_on": site.acts_on,
            "sources": list(site.sources),
            "mean": [round(value, _DIGITS) for value in site.mean],
            "spread": [round(value, _DIGITS) for value in site.spread],
        }
        for site in found.sites
    ]
    return {"num_tokens": found.num_tokens, "sites": sites, "error": None}
