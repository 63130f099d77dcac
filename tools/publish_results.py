"""Puts a finished comparison into the documentation: its results, and their tables in docs/results.md.

python tools/publish_results.py comparisons/small

In docs/results.md it writes between two marks below the heading of each setting; all else is written by hand, and
stays.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixerzoo.experiments import COLUMNS, cell, setting_in_words, summary

DOCS = Path(__file__).parents[1] / "docs"
#: The results that the documentation shows, and the page that has their tables.
PUBLISHED, PAGE = DOCS / "results" / "small.json", DOCS / "results.md"
BEGIN, END = "<!-- The tool writes from here -->", "<!-- to here -->"
SHOWN = ("bits_per_byte", "difference", "mixer_parameters", "cache_bytes", "in_flight_bytes_per_token")


def read_published() -> dict[str, Any]:
    """The published results, as ``results.json`` has them."""
    results: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return results


def heading(setting: Mapping[str, Any]) -> str:
    """The heading of the section that has a setting's table."""
    return f"## {setting_in_words(setting)}\n"


def section(results: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    """What a section begins with: what is shown in sentences, and the table, best first.

    Args:
        results: from ``results.json``.
        setting: one of its settings.
    """
    tuned = list(setting["mixers"][0]["tuned"])
    columns = [column for column in COLUMNS if column.key in SHOWN]
    titles = ["mixer", *(key.rpartition(".")[2].replace("_", " ") for key in tuned)]
    titles += ["mixer parameters" if each.key == "mixer_parameters" else each.title for each in columns]
    lines = [*(f"{sentence}\n" for sentence in summary(results, setting))]
    lines.append("| " + " | ".join(titles) + " |")
    lines.append("|---" + "|---:" * (len(titles) - 1) + "|")
    for row in sorted(setting["mixers"], key=lambda row: row["bits_per_byte"]["mean"]):
        values = [f"{row['tuned'][key]:g}" for key in tuned]
        cells = [f"`{row['label']}`", *values, *(_unbroken(cell(row, column.key)) for column in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _unbroken(text: str) -> str:
    """An interval that stays in one line."""
    return re.sub(r"\([^)]*\)", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def with_tables(page: str, results: Mapping[str, Any]) -> str:
    """The page with what stands between its marks made anew.

    Args:
        page: has, below the heading of every setting (see `heading`), the marks `BEGIN` and `END`.
        results: from ``results.json``.

    Raises:
        SystemExit: a setting has no such section.
    """
    for setting in results["settings"]:
        title = heading(setting)
        found = re.search(rf"^{re.escape(title)}(?:(?!^## ).)*?^{BEGIN}$", page, re.MULTILINE | re.DOTALL)
        end = page.find(END, found.end()) if found else -1
        if found is None or end < 0:
            raise SystemExit(f"{PAGE}: no section {title.strip()!r} with the lines {BEGIN!r} and {END!r}; write them")
        page = f"{page[: found.end()]}\n\n{section(results, setting)}\n{page[end:]}"
    return page


def main() -> None:
    """Copy the results and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of the comparison")
    source = parser.parse_args().directory / "results.json"
    results = json.loads(source.read_text(encoding="utf-8"))
    if results["finished"] < results["runs"]:
        raise SystemExit(
            f"{source}: {results['finished']} of {results['runs']} runs are finished; go on with `compare`"
        )
    page = with_tables(PAGE.read_text(encoding="utf-8"), results)
    PUBLISHED.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, PUBLISHED)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
