"""The figures of runs, as plain Python values and as pandas tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.errors import MixerzooError
from mixerzoo.runs.directory import RunDirectory
from mixerzoo.runs.log import METRICS_FILE, read_metrics_file

if TYPE_CHECKING:
    from pandas import DataFrame


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, finished or not.

    Args:
        directory: the run directory.

    Returns:
        For each logged step ``step``, ``loss``, ``grad_norm`` and ``learning_rate``; for each validation during
        training ``step`` and ``validation``, its figures; and in both the run's records so far, as ``result.json`` has
        them.

    Raises:
        RunError: the directory holds no run, or the file cannot be read.
    """
    run = RunDirectory(Path(directory))
    run.check_resumable()
    return read_metrics_file(run.path / METRICS_FILE)


def read_results(*directories: str | Path) -> list[dict[str, Any]]:
    """The final figures of finished runs.

    Args:
        *directories: the run directories.

    Returns:
        For each ``directory`` and the figures of its ``result.json``.

    Raises:
        RunError: a directory holds no run or one that is not finished, or the file cannot be read.
    """
    results = []
    for directory in directories:
        run = RunDirectory(Path(directory))
        run.finished_recipe()
        results.append({"directory": str(directory), **run.result()})
    return results


def metrics_frame(directory: str | Path) -> DataFrame:
    """`read_metrics` as a pandas table: a row for each step that has any, figures of validations as
    ``validation.loss`` and so on.

    Args:
        directory: the run directory.

    Raises:
        RunError: as `read_metrics`.
        MixerzooError: pandas is not installed.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in read_metrics(directory):
        validation = {f"validation.{key}": value for key, value in line.get("validation", {}).items()}
        rows.setdefault(line["step"], {}).update(
            {key: value for key, value in line.items() if key != "validation"} | validation
        )
    return _frame(list(rows.values())).set_index("step") if rows else _frame([])


def results_frame(*directories: str | Path) -> DataFrame:
    """`read_results` as a pandas table: a row for each run, by its directory.

    Args:
        *directories: the run directories.

    Raises:
        RunError: as `read_results`.
        MixerzooError: pandas is not installed.
    """
    results = read_results(*directories)
    return _frame(results).set_index("directory") if results else _frame([])


def _frame(rows: list[dict[str, Any]]) -> DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise MixerzooError(
            "tables need pandas: pip install pandas; or use read_metrics and read_results, which give plain values"
        ) from error
    return pandas.DataFrame(rows)
