"""report.html: one file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mixerzoo.experiments.figures import (
    COLUMNS,
    cell,
    method,
    setting_in_words,
    summary,
    threads,
    tuning_in_words,
    weights_in_words,
)

#: Figures against what was spent: key, what the axis says.
_SPENT = (("tokens", "tokens"), ("seconds", "seconds of training"), ("flops", "FLOPs"))
_COSTS = (("cache_bytes", "cache", "cache bytes of a sequence"), ("train_seconds", "seconds", "seconds of training"))


def report_page(results: Mapping[str, Any]) -> str:
    """The report as HTML.

    Args:
        results: the content of ``results.json``.
    """
    style = (importlib.resources.files("mixerzoo.experiments") / "report.css").read_text(encoding="utf-8")
    labels = list(results["recipes"])
    hide = "\n".join(f"body:has(#show{n}:not(:checked)) .s{n} {{ display: none; }}" for n in range(len(labels)))
    title = f"{len(labels)} mixers on {results['source']}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            *_state(results),
            *_legend(labels),
            *(
                part
                for number, setting in enumerate(results["settings"])
                for part in _setting(results, setting, number)
            ),
            *_reading(results),
            *_failures(results),
            "<h2>Method</h2>",
            f"<p>{escape(method(results))}</p>",
            *_provenance(results),
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}
{hide}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _state(results: Mapping[str, Any]) -> Iterator[str]:
    if results["finished"] < results["runs"]:
        yield f'<p class="warning">Not finished: {results["finished"]} of {results["runs"]} runs are.</p>'


def _legend(labels: Sequence[str]) -> Iterator[str]:
    yield '<form class="legend" aria-label="Mixers shown in the figures">'
    for number, label in enumerate(labels):
        yield (
            f'<label><input type="checkbox" id="show{number}" checked><span class="swatch c{number % 8}"></span>'
            f"{escape(label)}</label>"
        )
    yield "</form>"


def _setting(results: Mapping[str, Any], setting: Mapping[str, Any], number: int) -> Iterator[str]:
    from mixerzoo.experiments import plots

    rows = setting["mixers"]
    if setting["vary"]:
        yield f"<h2>{escape(setting_in_words(setting))}</h2>"
    yield from (f"<p>{escape(line)}</p>" for line in summary(results, setting))
    yield from _table(results, rows)
    if not any(row["bits_per_byte"] for row in rows):
        return
    name = f"f{number}"
    yield '<div class="figures">'
    yield _figure(plots.scores(rows, f"{name}-scores"), "Bits per byte: mean, interval, and every seed")
    for key, title in _SPENT:
        if any(point[key] is not None for row in rows for point in row["curve"]):
            svg = plots.curves(rows, key, title, f"{name}-{key}")
            yield _figure(svg, f"Training loss against {title}; the band spans the seeds")
    for key, kind, title in _COSTS:
        if svg := plots.against_cost(rows, key, kind, title, f"{name}-{kind}-cost"):
            yield _figure(svg, f"Quality against {title}: filled points are on the frontier")
    found = [each for each in results["tuning"] if each["vary"] == setting["vary"]]
    numbers = {row["label"]: n for n, row in enumerate(rows)}
    for n, key in enumerate(found[0]["trials"][0]["values"] if found else ()):
        yield _figure(plots.tuning(found, key, numbers, f"{name}-tune{n}"), f"Tuning of {key}, on seeds apart")
    yield "</div>"
    if found:
        yield "<h3>Tuned values</h3><ul>"
        yield from (f"<li>{escape(tuning_in_words(each))}</li>" for each in found)
        yield "</ul>"
    yield from _weights(rows, name)


def _weights(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """What each mixer learned to weigh: a figure, or a sentence."""
    from mixerzoo.experiments import plots

    told = [(number, row) for number, row in enumerate(rows) if row["weights"] is not None]
    if not told:
        return
    yield '<h3>Who reads whom, with learned weights</h3><div class="figures">'
    for number, row in told:
        if row["weights"]["sites"]:
            svg, most = plots.weights(row["weights"]["sites"], f"{name}-weights{number}")
            caption = f"{weights_in_words(row)}. The darkest is {most:.2f}; what is negative has the second colour."
            yield _figure(svg, caption, f"s{number}")
    yield "</div><ul>"
    yield from (f"<li>{escape(weights_in_words(row))}</li>" for _, row in told if not row["weights"]["sites"])
    yield "</ul>"


def _figure(svg: str, caption: str, series: str = "") -> str:
    own = f' class="{series}"' if series else ""
    return f"<figure{own}>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr><th scope="col">mixer</th>'
    yield "".join(f'<th scope="col" title="{escape(column.tells)}">{escape(column.title)}</th>' for column in COLUMNS)
    yield "</tr></thead><tbody>"
    for number, row in enumerate(rows):
        verdict = (row["difference"] or {}).get("verdict", "baseline" if row["label"] == results["baseline"] else "")
        note = " <small>baseline</small>" if row["label"] == results["baseline"] else ""
        yield (
            f'<tr class="{escape(verdict.replace(" ", "-"))}">'
            f'<th scope="row"><span class="swatch c{number % 8}"></span>'
            f"{escape(row['label'])}{note}</th>"
        )
        for column in COLUMNS:
            value = row[column.key]
            value = value["mean"] if isinstance(value, Mapping) else value
            known = "" if value is None else f' data-value="{value}"'
            yield f'<td data-key="{column.key}"{known}>{escape(cell(row, column.key))}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"


def _reading(results: Mapping[str, Any]) -> Iterator[str]:
    rows = [row for row in results["settings"][0]["mixers"] if row["picture"]]
    if not rows:
        return
    yield "<h2>Who could read whom</h2>"
    for row in rows:
        yield f"<details><summary>{escape(row['label'])}</summary><pre>{escape(row['picture'])}</pre></details>"


def _failures(results: Mapping[str, Any]) -> Iterator[str]:
    if results["failures"]:
        yield '<h2>Failed</h2><ul class="warning">'
        yield from (f"<li>{escape(each['title'])}: {escape(each['error'])}</li>" for each in results["failures"])
        yield "</ul>"


def _provenance(results: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Recipes and versions</h2>"
    if results["command"]:
        yield f"<pre>{escape(results['command'])}</pre>"
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield f"<p>{escape(versions)}; {escape(results['platform'])}; {threads(results)} a run.</p>"
    for label, recipe in results["recipes"].items():
        yield f"<details><summary>The recipe of {escape(label)}</summary><pre>{escape(recipe)}</pre></details>"
