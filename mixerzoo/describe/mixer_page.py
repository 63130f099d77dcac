"""What a mixer says of itself, and what can be seen of it, as HTML."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from mixerzoo.describe.compared import COMPARED, TOKENS, figures, short, with_defaults
from mixerzoo.describe.diagram import diagram
from mixerzoo.describe.mathml import mathml
from mixerzoo.describe.options import options, snippet
from mixerzoo.errors import MixerError, error_line
from mixerzoo.mixer import Mixer, MixerEntry
from mixerzoo.yaml_text import one_line

if TYPE_CHECKING:
    from jinja2 import Environment

#: The letters of the cards' formulas.
LETTERS = "D hidden size, L layers, H query heads, G key/value heads, d head_dim, e bytes per number"
#: The decoder that is drawn: deep enough to show a rule.
DRAWN = replace(COMPARED, num_layers=6, order=tuple(range(6)))


def glance(mixer_class: type[Mixer], chosen: Mapping[str, Any] | None = None) -> str:
    """Who reads whom, what it costs, where it is neutral, its dialects: part of a page, in the ink of that page.

    Args:
        mixer_class: the mixer.
        chosen: options in place of the default ones.

    Raises:
        Exception: whatever a faulty mixer raises.
    """
    return _environment().get_template("glance.html").render(_seen(mixer_class, chosen))


def mixer_page(entry: MixerEntry) -> str:
    """A whole page about a mixer: one file that needs nothing else, neither a network nor a script.

    Args:
        entry: the mixer and where it comes from.

    Raises:
        Exception: whatever a faulty mixer raises.
    """
    mixer_class = entry.mixer
    style = (importlib.resources.files("mixerzoo.describe") / "mixer_page.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("page.html")
        .render(
            _seen(mixer_class, None),
            entry=entry,
            name=mixer_class.name,
            style=style,
            equation=mathml(mixer_class.card.equation),
            options=[(each, "required" if each.required else one_line(each.default)) for each in options(mixer_class)],
            recipe=snippet(mixer_class),
        )
    )


def _seen(mixer_class: type[Mixer], chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the templates show."""
    seen = {
        "card": mixer_class.card,
        "letters": LETTERS,
        "compared": COMPARED,
        "tokens": TOKENS,
        "chosen": chosen is not None,
    }
    try:
        drawn = with_defaults(mixer_class, DRAWN, chosen)
        plan = drawn.plan()
        measured = figures(with_defaults(mixer_class, COMPARED, chosen))
        return {
            **seen,
            "steps": len(plan.order),
            "diagram": diagram(drawn, standalone=False),
            "own_kv": plan.needs_own_kv,
            "figures": measured,
            "parameters": short(measured.parameters),
        }
    except MixerError as error:  # it says itself that it does not take such a decoder, or needs options
        return {**seen, "reason": error_line(error)}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mixerzoo.describe"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
