"""Figures of a report, as SVG that takes its colours from the page around it.

Matplotlib draws with stand-ins for colours, which are then made variables of the page's style sheet; so one figure is
right in light and in dark. Every series carries its number as a class, by which the page hides it, and every point
its figures as a title, which a browser shows under the pointer.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from mixerzoo.experiments.figures import cell, short

#: Series beyond begin anew with the first colour and another line.
NUM_COLOURS = 8
#: Beyond, an axis names every second, third… of its rows or columns.
_MOST_LABELS = 26
_INK, _RULE = "#010101", "#020202"
_COLOURS = [f"#0303{number:02d}" for number in range(NUM_COLOURS)]
_DASHES = ("-", "--", ":", "-.")
_VARIABLES = {
    _INK: "var(--ink)",
    _RULE: "var(--rule)",
    **{c: f"var(--c{i})" for i, c in enumerate(_COLOURS)},
}


def scores(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Bits per byte of every mixer: each seed, the mean and its interval.

    Args:
        rows: of a setting.
        name: of the figure, unlike all others on the page.
    """
    titles: dict[str, str] = {}

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            found, place = row["bits_per_byte"], len(rows) - number
            if found is None:
                continue
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [place, place], color=_COLOURS[number % NUM_COLOURS], lw=2)
                axes.lines[-1].set_gid(f"s{number}-interval")
            seeds = [run["result"]["bits_per_byte"] for run in row["runs"] if run["result"]]
            axes.plot(seeds, [place] * len(seeds), "|", color=_INK, ms=7, alpha=0.6, gid=f"s{number}-seeds")
            axes.plot([found["mean"]], [place], "o", color=_COLOURS[number % NUM_COLOURS], ms=6, gid=f"s{number}-mean")
            titles[f"s{number}-mean"] = f"{row['label']}: {cell(row, 'bits_per_byte')}"
        axes.set_yticks([len(rows) - i for i in range(len(rows))], [row["label"] for row in rows])
        axes.set_ylim(0.4, len(rows) + 0.6)
        axes.set_xlabel("bits per byte")

    return _svg(draw, name, titles, height=0.9 + 0.28 * len(rows))


def curves(rows: Sequence[Mapping[str, Any]], against: str, title: str, name: str) -> str:
    """Training loss with a band over seeds.

    Args:
        rows: of a setting.
        against: key of the points: ``tokens``, ``seconds`` or ``flops``.
        title: of the axis.
        name: of the figure.
    """
    titles: dict[str, str] = {}

    def draw(axes: Axes) -> None:
        for number, row in enumerate(rows):
            points = [point for point in row["curve"] if point[against] is not None]
            x = [point[against] for point in points]
            colour, dash = _COLOURS[number % NUM_COLOURS], _DASHES[number // NUM_COLOURS % len(_DASHES)]
            if not points:
                continue
            axes.fill_between(
                x, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.18, lw=0
            ).set_gid(f"s{number}-band")
            axes.plot(x, [p["loss"] for p in points], dash, color=colour, lw=1.4, gid=f"s{number}-line")
            last = points[-1]
            titles[f"s{number}-line"] = f"{row['label']}: loss {last['loss']:.4f} after {short(last[against])} {title}"
        axes.set_xlabel(title)
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))

    return _svg(draw, name, titles)


def against_cost(rows: Sequence[Mapping[str, Any]], key: str, kind: str, title: str, name: str) -> str:
    """Bits per byte against a cost, and the frontier that nothing beats in both.

    Args:
        rows: of a setting.
        key: of the cost.
        kind: of the frontier: ``cache`` or ``seconds``.
        title: of the axis.
        name: of the figure.
    """
    titles: dict[str, str] = {}

    def draw(axes: Axes) -> None:
        on = []
        for number, row in enumerate(rows):
            if row[key] is None or row["bits_per_byte"] is None:
                continue
            x, y = row[key], row["bits_per_byte"]["mean"]
            best = row["on_frontier"][kind]
            colour = _COLOURS[number % NUM_COLOURS]
            axes.plot([x], [y], "o", color=colour, mfc=colour if best else "none", ms=7, gid=f"s{number}-point")
            where = "on the frontier" if best else "not on the frontier"
            titles[f"s{number}-point"] = f"{row['label']}: {y:.4f} bits per byte at {x:,.5g} {title}, {where}"
            if best:
                on.append((x, y))
        axes.plot(*zip(*sorted(on), strict=True), color=_INK, lw=0.8, alpha=0.5, drawstyle="steps-post")
        axes.set_xlabel(title)
        axes.set_ylabel("bits per byte")
        axes.margins(0.12)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))

    return _svg(draw, name, titles) if any(row[key] is not None and row["bits_per_byte"] for row in rows) else ""


def tuning(found: Sequence[Mapping[str, Any]], key: str, numbers: Mapping[str, int], name: str) -> str:
    """What each mixer made of every value of a key; of several tuned keys, the best over the others.

    Args:
        found: of a setting.
        key: that is tuned.
        numbers: label → number of the series.
        name: of the figure.
    """
    titles: dict[str, str] = {}
    tried = [trial["values"][key] for each in found for trial in each["trials"]]
    values = list(dict.fromkeys(map(str, tried)))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in tried)

    def draw(axes: Axes) -> None:
        for each in found:
            number = numbers[each["label"]]
            best: dict[Any, float] = {}
            for trial in each["trials"]:
                value = trial["values"][key] if numeric else values.index(str(trial["values"][key]))
                if trial["bits_per_byte"] is not None:
                    best[value] = min(trial["bits_per_byte"], best.get(value, trial["bits_per_byte"]))
            x = sorted(best)
            colour, dash = _COLOURS[number % NUM_COLOURS], _DASHES[number // NUM_COLOURS % len(_DASHES)]
            axes.plot(x, [best[v] for v in x], f"o{dash}", color=colour, lw=1.4, ms=4, gid=f"s{number}-tuning")
            shown = ", ".join(f"{f'{v:g}' if numeric else values[v]}: {best[v]:.4f}" for v in x)
            titles[f"s{number}-tuning"] = f"{each['label']}: {shown}"
        axes.set_xlabel(key)
        axes.set_ylabel("bits per byte")
        if numeric and min(map(float, values)) > 0:
            axes.set_xscale("log")
            axes.set_xticks([float(value) for value in values], values)
            axes.minorticks_off()
        elif not numeric:
            axes.set_xticks(range(len(values)), values)

    return _svg(draw, name, titles)


def weights(sites: Sequence[Mapping[str, Any]], name: str) -> tuple[str, float]:
    """A heat map of what a mixer weighs.

    Args:
        sites: rows, each with ``name``, ``sources``, ``mean``, ``spread``.
        name: of the figure.

    Returns:
        The figure, and the largest weight, which is the darkest in it.
    """
    titles: dict[str, str] = {}
    columns = sorted({source for site in sites for source in site["sources"]}, key=_depth)
    most = max((abs(value) for site in sites for value in site["mean"]), default=0.0)

    def draw(axes: Axes) -> None:
        for y, site in enumerate(sites):
            for source, mean, spread in zip(site["sources"], site["mean"], site["spread"], strict=True):
                x = columns.index(source)
                colour, share = _COLOURS[mean < 0], abs(mean) / most if most else 0.0
                key = f"w{y}-{x}"
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=share, lw=0, gid=key))
                titles[key] = f"{site['name']} reads {source}: {mean:.3f} ± {spread:.3f}"
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.grid(visible=False)
        for axis, labels in ((axes.xaxis, columns), (axes.yaxis, [site["name"] for site in sites])):
            every = -(-len(labels) // _MOST_LABELS)
            axis.set_ticks(range(0, len(labels), every), labels[::every], fontsize=7)
        axes.tick_params(axis="x", rotation=90)

    return _svg(draw, name, titles, height=1.2 + 0.13 * min(len(sites), 2 * _MOST_LABELS)), most


def _depth(source: str) -> tuple[int, int]:
    """The embedding, then sublayers as a forward goes, then sources that have no name but a number."""
    if source == "embedding":
        return (-1, 0)
    first, _, second = source.partition(" ")
    return (int(first), second == "mlp") if first.isdigit() else (sys.maxsize, int(second))


def _svg(draw: Callable[[Axes], None], name: str, titles: Mapping[str, str], height: float = 3.1) -> str:
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _RULE,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _RULE,
        "grid.linewidth": 0.5,
        "axes.axisbelow": True,
    }
    out = io.StringIO()
    with rc_context(settings):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _of_the_page(out.getvalue(), name, titles)


def _of_the_page(svg: str, name: str, titles: Mapping[str, str]) -> str:
    """An SVG as a part of a page: without what stands before it, its names its own, its colours the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg id="{name}" role="img" viewBox="\1">', svg, count=1)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    for key, text in titles.items():
        svg = svg.replace(f'<g id="{key}">', f'<g id="{key}"><title>{escape(text)}</title>', 1)
    svg = re.sub(r'<g id="s(\d+)-', r'<g class="s\1" id="s\1-', svg)
    svg = re.sub(r'(\sid="|href="#|url\(#)(?!' + re.escape(name) + '")', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()
