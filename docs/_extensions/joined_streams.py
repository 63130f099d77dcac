"""What a cell prints, joined as it came: myst-nb's own joining breaks the line wherever a pipe's read ended."""

from __future__ import annotations

from typing import Any

from myst_nb.core import render
from sphinx.application import Sphinx


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs of a cell with one of each stream, standard output first.

    Args:
        outputs: as the kernel sent them.
    """
    streams: dict[str, Any] = {}
    others = []
    for output in outputs:
        if output["output_type"] != "stream":
            others.append(output)
        elif output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
        else:
            streams[output["name"]] = output
    return [*(streams[name] for name in ("stdout", "stderr") if name in streams), *others]


def setup(app: Sphinx) -> dict[str, Any]:
    """Take the place of myst-nb's."""
    assert callable(render.coalesce_streams), "myst-nb joins streams elsewhere now"
    render.coalesce_streams = joined
    return {"parallel_read_safe": True, "parallel_write_safe": True}
