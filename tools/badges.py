"""Write the badges of the README from pyproject.toml: nothing on them is claimed that is not set there.

python tools/badges.py docs/images
"""

from __future__ import annotations

import re
import sys
import tomllib
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: About what a letter takes in the badge's type.
_LETTER = 6.6


def badges(project: dict[str, Any]) -> dict[str, str]:
    """File name → SVG of each badge.

    Args:
        project: the table of that name in pyproject.toml.
    """
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: Python :: 3\.\d+$", c)]
    said = {
        "license": project["license"],
        "python": " | ".join(versions),
        "pytorch": _range(project["dependencies"], "torch"),
        "transformers": _range(project["dependencies"], "transformers"),
    }
    return {f"badge-{name}.svg": badge(name, value) for name, value in said.items()}


def badge(name: str, value: str) -> str:
    """A badge as SVG, with its words for those who do not see it."""
    left, right = (round(_LETTER * len(text)) + 14 for text in (name, value))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'font-family="Verdana, sans-serif" font-size="11" text-anchor="middle">'
        f"<title>{escape(name)}: {escape(value)}</title>"
        f'<rect width="{left + right}" height="20" rx="3" fill="#1d4ed8"/>'
        f'<path d="M3 0H{left}V20H3a3 3 0 0 1 -3 -3V3a3 3 0 0 1 3 -3z" fill="#3f4754"/>'
        f'<text x="{left / 2:g}" y="14" fill="#fff">{escape(name)}</text>'
        f'<text x="{left + right / 2:g}" y="14" fill="#fff">{escape(value)}</text></svg>\n'
    )


def _range(dependencies: list[str], name: str) -> str:
    """The bounds of a dependency, as they are written."""
    return next(each.removeprefix(name) for each in dependencies if re.match(rf"{name}[<>=]", each)).replace(",", ", ")


if __name__ == "__main__":
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for file, svg in badges(pyproject["project"]).items():
        (Path(sys.argv[1]) / file).write_text(svg, encoding="utf-8")
