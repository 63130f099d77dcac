"""Who reads whom, as a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Mixer, Plan, Site
from mixerzoo.model import Decoder

#: A drawing of more steps is no longer read.
MAX_STEPS = 24

_BOX, _GAP, _CENTRE, _WIDTH = (96, 22), 12, 180, 360
#: The middle of the topmost box.
_HEAD = 24
_STEP = 2 * (_BOX[1] + _GAP) + 8
#: Mid tones, that stand out from white and from black.
_MIXED, _KEYS, _VALUES = "#3b82f6", "#2f9e44", "#d9730d"
#: For a drawing without a page around it.
_STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def diagram(model: Decoder | Mixer, *, title: str | None = None, standalone: bool = True) -> str:
    """Who reads whom, as SVG: bottom to top as the field draws decoders, 360 units wide.

    On the right, what a site combines with weights of its own (`Mixer.sources`); on the left, the keys and values that
    a layer attends to and that another one wrote (`Mixer.plan`). The residual stream is the line in the middle.

    Args:
        model: a decoder or its mixer, of at most `MAX_STEPS` steps.
        title: what readers who do not see it hear first; default: the mixer's name.
        standalone: whether it chooses its ink itself, light or dark as the reader's system is; else it takes the colour
            of the text around it.

    Raises:
        MixerError: there are more steps.
    """
    mixer = model.mixer if isinstance(model, Decoder) else model
    plan = mixer.plan()
    if len(plan.order) > MAX_STEPS:
        raise MixerError(f"a drawing has at most {MAX_STEPS} steps; this decoder has {len(plan.order)}")
    height = _STEP * len(plan.order) + 2 * (_BOX[1] + _GAP) + 40
    sites = [Site(step, layer, branch) for step, layer in enumerate(plan.order) for branch in ("attention", "mlp")]
    lent, mixed = list(_lent(plan, height)), list(_mixed(mixer, sites, height))
    name = escape(title or mixer.name)
    label = escape(_words(mixer, sites, plan))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="none" stroke-width="1.5">',
        f"<title>{name}</title><desc>{label}</desc>",
        _STYLE if standalone else "",
        *lent,
        *mixed,
        *_stream([_middle(None, height), *(_middle(site, height) for site in sites), _HEAD]),
        _box("embedding", _middle(None, height)),
        *(_box(_label(site, plan), _middle(site, height)) for site in sites),
        _box("head", _HEAD),
        *_legend(bool(lent), bool(mixed), height),
        "</svg>",
    ]
    return "".join(parts)


def _middle(site: Site | None, height: int) -> int:
    """The height of a box's middle; None is the embedding."""
    lowest = height - 16 - _BOX[1] // 2 - 20
    if site is None:
        return lowest
    return lowest - (_BOX[1] + _GAP) - site.step * _STEP - (site.branch == "mlp") * (_BOX[1] + _GAP)


def _label(site: Site, plan: Plan) -> str:
    window = plan.window(site.step) if site.branch == "attention" else None
    near = "" if window is None else f" ≤ {window}"
    return f"{'attention' if site.branch == 'attention' else 'MLP'} {site.layer}{near}"


def _box(text: str, middle: int) -> str:
    width, height = _BOX
    return (
        f'<rect x="{_CENTRE - width // 2}" y="{middle - height // 2}" width="{width}" height="{height}" rx="4" '
        f'stroke="currentColor" stroke-opacity=".55"/>'
        f'<text x="{_CENTRE}" y="{middle + 4}" text-anchor="middle" fill="currentColor">{escape(text)}</text>'
    )


def _stream(middles: list[int]) -> Iterator[str]:
    """The line between boxes."""
    half = _BOX[1] // 2
    for below, above in pairwise(middles):
        yield (
            f'<line x1="{_CENTRE}" y1="{below - half}" x2="{_CENTRE}" y2="{above + half}" stroke="currentColor" '
            f'stroke-opacity=".55"/>'
        )


def _arc(source: float, reader: float, side: int, colour: str, opacity: float) -> str:
    """From the edge of one box to that of another, the wider the further apart they are."""
    edge = _CENTRE + side * _BOX[0] // 2
    reach = edge + side * min(118.0, 14 + abs(source - reader) * 0.32)
    return (
        f'<path d="M{edge} {source:g}C{reach:g} {source:g} {reach:g} {reader:g} {edge} {reader:g}" stroke="{colour}" '
        f'stroke-opacity="{opacity:g}"/><circle cx="{edge}" cy="{reader:g}" r="2" fill="{colour}"/>'
    )


def _mixed(mixer: Mixer, sites: list[Site], height: int) -> Iterator[str]:
    reads = {site: [source for source in mixer.sources(site) if source != site] for site in sites}
    most = max(map(len, reads.values()))
    for site, found in reads.items():
        for source in found:
            yield _arc(_middle(source, height) - 4, _middle(site, height) + 4, 1, _MIXED, max(0.35, 1 - 0.1 * most))


def _lent(plan: Plan, height: int) -> Iterator[str]:
    for colour, writes, reads, shift in (
        (_KEYS, plan.k_writes, plan.k_reads, -4),
        (_VALUES, plan.v_writes, plan.v_reads, 4),
    ):
        for step, slots in enumerate(reads):
            for slot in slots:
                owner = max(earlier for earlier, written in enumerate(writes) if written == slot and earlier <= step)
                if owner != step:
                    one, other = (Site(at, plan.order[at], "attention") for at in (owner, step))
                    yield _arc(_middle(one, height) + shift, _middle(other, height) + shift, -1, colour, 0.8)


def _legend(lent: bool, mixed: bool, height: int) -> Iterator[str]:
    entries = [("keys", _KEYS), ("values", _VALUES)] if lent else []
    entries += [("mixed with weights", _MIXED)] if mixed else []
    x = 8
    for text, colour in entries:
        yield f'<circle cx="{x}" cy="{height - 12}" r="3" fill="{colour}"/>'
        yield f'<text x="{x + 8}" y="{height - 8}" fill="currentColor">{text}</text>'
        x += 24 + 6 * len(text)


def _words(mixer: Mixer, sites: list[Site], plan: Plan) -> str:
    reading = sum(bool(mixer.sources(site)) for site in sites)
    borrowing = sum((step,) != reads for each in (plan.k_reads, plan.v_reads) for step, reads in enumerate(each))
    return (
        f"{len(plan.order)} steps; {reading} sites combine the outputs of others with weights of their own; "
        f"keys or values are read from other steps {borrowing} times"
    )
