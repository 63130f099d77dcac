"""What the pages of the site show of mixers, made from the mixers themselves when it is built.

The pages in ``docs/`` are whole without it: a forge shows them as they are. Here they get drawings, figures, BibTeX
and equations in mathematical type.
"""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from pybtex.database import BibliographyData, parse_file
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import mixerzoo
from mixerzoo import DecoderShape, Mixer, load_registry
from mixerzoo.describe import (
    BASELINE,
    COMPARED,
    DRAWN,
    Figures,
    diagram,
    figures,
    glance,
    mathml,
    short,
    with_defaults,
)
from mixerzoo.yaml_text import from_yaml

DOCS = Path(__file__).parents[1]
#: Layers of the small drawings.
SMALL = 4


def built_in() -> dict[str, type[Mixer]]:
    """The project's own mixers, and not what else happens to be installed."""
    found = load_registry().entries.values()
    return {entry.mixer.name: entry.mixer for entry in found if entry.distribution == "mixerzoo"}


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Add to a page what is known of its mixers."""
    folder, _, mixer = name.rpartition("/")
    if folder == "mixers":
        source[0] = mixer_page(source[0], built_in()[mixer])
    elif name == "mixers":
        source[0] = gallery_page(source[0])


def mixer_page(text: str, mixer: type[Mixer]) -> str:
    """A mixer's page with its drawing and figures below the equation, and at the end its papers."""
    chosen = _needed_options(text, mixer)
    text = re.sub(r"^```text\n(.*?)^```\n", lambda found: _raw(mathml(found[1])), text, flags=re.M | re.S)
    shown = _raw(f'<p class="mixer-family"><a href="../mixers.html">The gallery</a> · {mixer.card.title}</p>')
    title, rest = text.split("\n", 1)
    # Below the first formula, or else below the first paragraph.
    formula = re.search(r"^```\{raw\} html\n.*?^```\n", rest, flags=re.M | re.S)
    end = formula.end() if formula else rest.index("\n\n", 1) + 1
    return "\n".join(
        [title, "", shown, rest[:end], _raw(glance(mixer, chosen)), rest[end:], "", *_papers(text)],
    )


def gallery_page(text: str) -> str:
    """The gallery with a card for each mixer, and the pages of all below it in the contents."""
    table = text.index("| mixer | in one sentence")
    end = text.index("\n\n", table)
    cards = _gallery(built_in())
    contents = "```{toctree}\n:hidden:\n\n" + "\n".join(f"mixers/{name}" for name in _ordered()) + "\n```\n"
    below = f":::{{dropdown}} The same as a table, with the size of the cache\n\n{text[table:end]}\n\n:::"
    return f"{text[:table]}{_raw(cards)}\n{below}\n{text[end:]}\n\n{contents}"


def _ordered() -> list[str]:
    """Names in the order of the table."""
    return re.findall(r"^\| \[\w+\]\(mixers/(\w+)\.md\)", (DOCS / "mixers.md").read_text(encoding="utf-8"), re.M)


def _needed_options(text: str, mixer: type[Mixer]) -> dict[str, Any] | None:
    """The options of the page's recipe, where some have no default."""
    if not any(field.is_required() for field in mixer.Config.model_fields.values()):
        return None
    recipe = from_yaml(re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)[-1])
    return {key: value for key, value in recipe["mixer"].items() if key != "name"}


def _raw(html: str) -> str:
    return f"```{{raw}} html\n{html}\n```\n"


def bibliography() -> BibliographyData:
    """All papers, by key."""
    return parse_file(DOCS / "references.bib")


def _papers(text: str) -> list[str]:
    """What the page names that the bibliography has, to read and to copy."""
    found = []
    for key, entry in bibliography().entries.items():
        fields = entry.fields
        if (fields.get("eprint") or fields["url"].removeprefix("https://")) in text:
            found.append(key)
    if not found:
        return []
    entries = "\n".join(BibliographyData({key: bibliography().entries[key]}).to_string("bibtex") for key in found)
    return ["## Cite", "", f"{{cite}}`{','.join(found)}`, as BibTeX:", "", "```bibtex", entries.strip(), "```", ""]


def _gallery(mixers: dict[str, type[Mixer]]) -> str:
    families = list(dict.fromkeys(mixers[name].card.family for name in _ordered()))
    # Chosen and hidden by the style sheet alone: no script.
    hide = "".join(
        f"body:has(#family-{family}:checked) .mixer-card:not([data-family={family}]){{display:none}}"
        for family in families
    )
    choices = "".join(_radio("family", family, family) for family in families)
    costs = "".join(
        _radio("cost", value, words)
        for value, words in (
            ("parameters", "no parameters"), ("cache", "smaller cache"), ("flight", "at most two streams in flight"),
        )
    )  # fmt: skip
    cards = "\n".join(_card(mixers[name]) for name in _ordered())
    return f"""<style>{hide}</style>
<form class="mixer-filter">
<fieldset><legend>Family</legend>{_radio("family", "all", "all", checked=True)}{choices}</fieldset>
<fieldset><legend>Cost</legend>{_radio("cost", "any", "any", checked=True)}{costs}</fieldset>
</form>
<div class="mixer-cards">
{cards}
</div>
<p class="mixer-small">Drawn with {SMALL} layers and default options. Costs are those on {COMPARED.num_layers} layers
of hidden size {COMPARED.hidden_size}: parameters that the mixer adds, its cache over residual's, bytes in flight over
those of one hidden state.</p>"""


def _radio(group: str, value: str, words: str, *, checked: bool = False) -> str:
    return (
        f'<label><input type="radio" name="{group}" id="{group}-{value}"{" checked" * checked}> '
        f"<span>{escape(words)}</span></label>"
    )


def _card(mixer: type[Mixer]) -> str:
    text = (DOCS / "mixers" / f"{mixer.name}.md").read_text(encoding="utf-8")
    chosen = _needed_options(text, mixer)
    drawn = diagram(with_defaults(mixer, _of_depth(SMALL), chosen), standalone=False)
    # Without its words and margins, which nobody could read at that size.
    drawn = re.sub(r'viewBox="0 0 360 (\d+)"', lambda found: f'viewBox="46 8 268 {int(found[1]) - 36}"', drawn)
    costs = figures(with_defaults(mixer, COMPARED, chosen))
    holds = {
        "parameters": costs.parameters == 0,
        "cache": costs.cache_relative < 1,
        "flight": costs.in_flight_relative <= 2,
    }
    free = " ".join(word for word, true in holds.items() if true)
    return (
        f'<a class="mixer-card" href="mixers/{mixer.name}.html" data-family="{mixer.card.family}" data-free="{free}">'
        f'<span class="mixer-thumb">{drawn}</span><span class="mixer-words">'
        f"<strong>{mixer.name}</strong><span>{escape(mixer.card.summary)}</span>"
        f'<span class="mixer-tags">{_tags(mixer.card.family, costs)}</span></span></a>'
    )


def _tags(family: str, costs: Figures) -> str:
    tags = [
        family,
        f"+{short(costs.parameters)} parameters" if costs.parameters else "no parameters",
        f"cache {costs.cache_relative:.2g}×",
        f"in flight {costs.in_flight_relative:.3g}×",
    ]
    return "".join(f"<span>{tag}</span>" for tag in tags)


def _of_depth(layers: int) -> DecoderShape:
    return replace(DRAWN, num_layers=layers, order=tuple(range(layers)))


def link_names(app: Sphinx, document: nodes.document) -> None:
    """Link what is exported, where prose names it, to its docstring: ``Mixer``, ``Plan.order``, ``mixerzoo.build``."""
    for literal in list(document.findall(nodes.literal)):
        found = re.fullmatch(r"(mixerzoo\.)?(\w+)((?:\.\w+)*)(?:\(\))?", literal.astext())
        if found is None or found[2] not in mixerzoo.__all__:
            continue
        if isinstance(literal.parent, nodes.reference | nodes.title | addnodes.pending_xref):
            continue
        # A plain word is mostly a command or an option.
        if found[1] or found[2] != found[2].lower() or "_" in found[2]:
            target = f"mixerzoo.{found[2]}{found[3]}"
            link = addnodes.pending_xref(
                "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=target, refdoc=app.env.docname
            )
            literal.replace_self(link)


class DiagramDirective(SphinxDirective):
    """``{diagram} NAME``: who reads whom with default options; the content is the caption."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {"layers": directives.positive_int}

    def run(self) -> list[nodes.Node]:
        """The drawing as a figure."""
        layers = self.options.get("layers", SMALL)
        mixer = load_registry().get(self.arguments[0]).mixer
        drawn = diagram(with_defaults(mixer, _of_depth(layers)), standalone=False)
        caption = nodes.caption()
        self.state.nested_parse(self.content, self.content_offset, words := nodes.container())
        caption += [child for paragraph in words.findall(nodes.paragraph) for child in paragraph.children]
        return [nodes.figure("", nodes.raw("", drawn, format="html"), caption, classes=["mixer-diagram"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook into the reading of pages."""
    assert BASELINE in built_in(), "the built-in mixers are not installed"
    app.connect("source-read", fill)
    app.connect("doctree-read", link_names)
    app.add_directive("diagram", DiagramDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
