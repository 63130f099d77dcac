"""What the site shows of the published comparison: figures below its tables, the front page's table, each mixer's rows.

``docs/results/small.json`` is the ``results.json`` of ``recipes/compare/small.yaml``, put there by
``tools/publish_results.py``, which also writes the tables of ``docs/results.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from mixerzoo.experiments import cell, plots, report_page, setting_in_words

RESULTS = Path(__file__).parents[1] / "results" / "small.json"
#: Where the site has the whole report.
REPORT = "results/small.html"


@cache
def published() -> dict[str, Any]:
    """The content of the published ``results.json``."""
    if not RESULTS.is_file():
        raise ExtensionError(f"{RESULTS} is missing; `python tools/publish_results.py DIR` puts it there")
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Add to a page what the comparison found."""
    folder, _, mixer = name.rpartition("/")
    if name == "results":
        source[0] = _with_figures(source[0])
    elif folder == "mixers":
        source[0] += "".join(_of_mixer(mixer))
    else:
        return
    app.env.note_dependency(RESULTS)


def _with_figures(text: str) -> str:
    """The page of results with figures at the end of each setting's section, and a link to the whole report."""
    results = published()
    for number, setting in enumerate(results["settings"]):
        heading = f"## {setting_in_words(setting)}\n"
        if heading not in text:
            raise ExtensionError(f"results.md has no section {heading.strip()!r}; the published comparison has")
        end = text.find("\n## ", text.index(heading) + len(heading))
        end = len(text) if end < 0 else end
        text = f"{text[:end].rstrip()}\n\n{_figures(results, setting, f'f{number}')}{text[end:]}"
    whole = f'<p><a href="{REPORT}">The whole report</a>: every cost, curves of the loss, learned weights, recipes.</p>'
    return f"{text.rstrip()}\n\n```{{raw}} html\n{whole}\n```\n"


def _figures(results: Mapping[str, Any], setting: Mapping[str, Any], name: str) -> str:
    rows = setting["mixers"]
    numbers = {row["label"]: number for number, row in enumerate(rows)}
    tuned = [each for each in results["tuning"] if each["vary"] == setting["vary"]]
    drawn = [
        (plots.scores(rows, f"{name}-scores"), "Bits per byte: mean, interval, and every seed"),
        (
            plots.against_cost(rows, "cache_bytes", "cache", "cache bytes of a sequence", f"{name}-cache"),
            "Quality against the cache: filled points are on the frontier",
        ),
        *(
            (plots.tuning(tuned, key, numbers, f"{name}-{number}"), f"Tuning of {key}, on seeds apart")
            for number, key in enumerate(rows[0]["tuned"])
        ),
    ]
    figures = "\n".join(f"<figure>{svg}<figcaption>{escape(says)}</figcaption></figure>" for svg, says in drawn)
    key = "".join(f'<span class="c{number % 8}">{escape(label)}</span>' for label, number in numbers.items())
    return f'```{{raw}} html\n<div class="comparison"><p class="key">{key}</p>\n{figures}</div>\n```\n'


def _of_mixer(mixer: str) -> Iterator[str]:
    """The section of a mixer's page; nothing for one that was not compared."""
    results = published()
    found = [
        (_decoder(setting), row)
        for setting in results["settings"]
        for row in setting["mixers"]
        if row["mixer"]["name"] == mixer
    ]
    if not found:
        return
    yield "\n## Results\n\nFrom [the comparison](../results.md):\n\n"
    yield f"| | decoder | bits per byte | difference to `{results['baseline']}` |\n|---|---|---:|---:|\n"
    for decoder, row in found:
        yield f"| `{row['label']}` | {decoder} | {cell(row, 'bits_per_byte')} | {cell(row, 'difference')} |\n"


def _decoder(setting: Mapping[str, Any]) -> str:
    """A setting in the words of somebody who knows the recipe."""
    return re.sub(r"model\.num_layers = (\d+)", r"\1 layers", setting_in_words(setting))


class ResultsDirective(SphinxDirective):
    """``{results}``: bits per byte of every mixer in every setting, beside what the mixer costs."""

    def run(self) -> list[nodes.Node]:
        """The table."""
        results = published()
        self.env.note_dependency(RESULTS)
        settings: Sequence[Mapping[str, Any]] = results["settings"]
        titles = ["mixer", *(_decoder(setting) for setting in settings), "its parameters", "its cache"]
        lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
        last = settings[-1]["mixers"]
        baseline = next(row for row in last if row["label"] == results["baseline"])
        for number in sorted(range(len(last)), key=lambda number: last[number]["bits_per_byte"]["mean"]):
            rows = [setting["mixers"][number] for setting in settings]
            cells = [f"[{rows[0]['label']}](mixers/{rows[0]['mixer']['name']}.md)"]
            cells += [f"{row['bits_per_byte']['mean']:.3f}{_mark(row)}" for row in rows]
            cells += [f"{rows[-1]['mixer_parameters']:,}", f"{rows[-1]['cache_bytes'] / baseline['cache_bytes']:.2g}×"]
            lines.append("| " + " | ".join(cells) + " |")
        held = nodes.container()
        self.state.nested_parse(StringList(lines, source="results"), self.content_offset, held)
        return list(held.children)


def _mark(row: Mapping[str, Any]) -> str:
    verdict = (row["difference"] or {}).get("verdict")
    return {"better": " ▾", "worse": " ▴"}.get(verdict, "")


def write_report(app: Sphinx, error: Exception | None) -> None:
    """Put the whole report beside the pages."""
    if error is None:
        place = Path(app.outdir) / REPORT
        place.parent.mkdir(exist_ok=True)
        place.write_text(report_page(published()), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the reading of pages."""
    app.connect("source-read", fill)
    app.connect("build-finished", write_report)
    app.add_directive("results", ResultsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
