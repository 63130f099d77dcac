"""An inspection as one HTML page that opens without a network, in light and dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from mixerzoo.experiments.inspect import Inspection

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .5rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; }
td { background: color-mix(in srgb, royalblue calc(var(--w) * 1%), transparent); }
"""


def inspection_page(found: Inspection, title: str) -> str:
    """The HTML of an inspection.

    Args:
        found: what was seen.
        title: of the page: the run.
    """
    parts = [f"<h1>{escape(title)}</h1><p>{escape(found.mixer)}, {found.num_tokens:,} tokens</p>"]
    if not found.sites:
        parts.append("<p>The mixer shows no weights.</p>")
    for site in found.sites:
        parts.append(f"<h2>{escape(site.name)}{'' if site.layer is None else f' (layer {site.layer})'}</h2>")
        rows = [("mean", site.mean), ("spread", site.spread)]
        if site.per_token is not None and found.tokens is not None:
            rows += list(zip(map(repr, found.tokens), site.per_token, strict=True))
        parts.append(_table(site.sources, rows))
    if found.depth_loss is not None:
        steps = [f"step {step}" for step in range(len(found.depth_loss))]
        parts.append("<h2>Loss after each step, nats per token</h2>")
        parts.append(_table(steps, [("loss", found.depth_loss)], coloured=False))
    data = json.dumps(found.to_dict()).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}"
        f'<script type="application/json" id="data">{data}</script></body></html>\n'
    )


def _table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], *, coloured: bool = True) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f'<td style="--w:{min(90, 90 * abs(x)) if coloured else 0:.0f}">{x:.3f}</td>' for x in values)
        + "</tr>"
        for name, values in rows
    )
    return f"<div><table><tr><th></th>{head}</tr>{body}</table></div>"
