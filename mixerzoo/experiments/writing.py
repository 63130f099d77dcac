"""The forms of a report: results.json, results.csv, report.md, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerzoo import files
from mixerzoo.experiments.figures import COLUMNS, cell, method, setting_in_words, summary, threads, tuning_in_words
from mixerzoo.experiments.page import report_page
from mixerzoo.files import to_json

RESULTS_FILE, TABLE_FILE, TEXT_FILE, PAGE_FILE = "results.json", "results.csv", "report.md", "report.html"


def write_reports(results: Mapping[str, Any], directory: Path) -> None:
    """Write all forms.

    Args:
        results: from `collect`.
        directory: of the comparison.

    Raises:
        OSError: a file cannot be written.
    """
    files.write_text(directory / RESULTS_FILE, to_json(dict(results)))
    files.write_text(directory / TABLE_FILE, table(results))
    files.write_text(directory / TEXT_FILE, text(results))
    files.write_text(directory / PAGE_FILE, report_page(files.finite(dict(results))))


def table(results: Mapping[str, Any]) -> str:
    """One line of CSV a run."""
    rows: list[dict[str, Any]] = []
    for setting in results["settings"]:
        for row in setting["mixers"]:
            for run in row["runs"]:
                known = {key: value for key, value in (run["result"] or {}).items() if not isinstance(value, dict)}
                place = {"label": row["label"], **setting["vary"], **row["tuned"]}
                rows.append(place | {key: run[key] for key in ("seed", "status", "directory")} | known)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def text(results: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {len(results['recipes'])} mixers on {results['source']}", ""]
    if results["finished"] < results["runs"]:
        lines += [f"**Not finished: {results['finished']} of {results['runs']} runs are.**", ""]
    for setting in results["settings"]:
        if setting["vary"]:
            lines += [f"## {setting_in_words(setting)}", ""]
        lines += [*summary(results, setting), ""]
        lines.append("| " + " | ".join(["mixer", *(column.title for column in COLUMNS)]) + " |")
        lines.append("|---" + "|---:" * len(COLUMNS) + "|")
        for row in setting["mixers"]:
            cells = (cell(row, column.key) for column in COLUMNS)
            lines.append("| " + " | ".join([f"`{row['label']}`", *cells]) + " |")
        lines.append("")
    if results["tuning"]:
        lines += ["## Tuned values", "", *(f"- {tuning_in_words(found)}" for found in results["tuning"]), ""]
    if results["failures"]:
        lines += ["## Failed", ""]
        lines += [f"- {each['title']}: {' '.join(each['error'].split())}" for each in results["failures"]] + [""]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines += ["## Method", "", method(results), "", f"{versions}; {threads(results)} a run.", ""]
    return "\n".join(lines)
