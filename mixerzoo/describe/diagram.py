"""Who reads whom, as a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Followed, Mixer, Plan, Site, follow
from mixerzoo.model import Decoder

#: A drawing of more steps is no longer read.
MAX_STEPS = 24

_BOX, _GAP, _CENTRE, _WIDTH = (96, 22), 12, 180, 360
#: The middle of the topmost box.
_HEAD = 24
_STEP = 2 * (_BOX[1] + _GAP) + 8
#: Streams that are drawn one by one, and how far apart.
_MOST_STREAMS, _APART = 6, 6
#: How far from the middle a line runs that passes a box by.
_PAST = _BOX[0] // 2 + 12
#: Mid tones, that stand out from white and from black.
_MIXED, _KEYS, _VALUES, _TABLE = "#3b82f6", "#2f9e44", "#d9730d", "#a855f7"
#: For a drawing without a page around it.
_STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def diagram(model: Decoder | Mixer, *, title: str | None = None, standalone: bool = True) -> str:
    """Who reads whom, as SVG: bottom to top as the field draws decoders, 360 units wide.

    On the right, what a site combines with weights of its own (`Mixer.sources`); on the left, the keys and values that
    a layer attends to and that another one wrote (`Mixer.plan`). The residual stream is the line in the middle. What
    else tells mixers apart is seen in their calls (`follow`): several streams, weights of what is read or added, tables
    that are looked up, an output that the next sublayer does not wait for; and in the plan: earlier tokens.

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
    seen = follow(mixer)
    late, extras = _late(seen, sites), list(_extras(mixer, seen, sites, height))
    name = escape(title or mixer.name)
    label = escape(_words(mixer, sites, plan) + _more_words(plan, seen, late))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="none" stroke-width="1.5">',
        f"<title>{name}</title><desc>{label}</desc>",
        _STYLE if standalone else "",
        *lent,
        *mixed,
        *_stream([_middle(None, height), *(_middle(site, height) for site in sites), _HEAD], seen, late),
        *extras,
        *_tail(plan, height),
        _box("embedding", _middle(None, height)),
        *(_box(_label(site, plan), _middle(site, height)) for site in sites),
        _box("head", _HEAD),
        *_legend(bool(lent), bool(mixed), height, _legend_of(extras, seen, late)),
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


def _stream(middles: list[int], seen: Followed | None, late: list[Site]) -> Iterator[str]:
    """The lines between boxes: one a stream. A reader that does not wait has one past the box below it."""
    half = _BOX[1] // 2
    number = 1 if seen is None else min(seen.num_streams, _MOST_STREAMS)
    for below, above in pairwise(middles):
        for stream in range(number):
            x = _CENTRE + _APART * (stream - (number - 1) / 2)
            yield _line(x, below - half, x, above + half)
    for site in late:
        before, own = middles[site.number], middles[site.number + 1]
        low, x = before + half + _GAP / 2, _CENTRE + _PAST + 10 * (site.number % 2)
        yield (
            f'<path d="M{_CENTRE} {low:g}H{x - 6}Q{x} {low:g} {x} {low - 6:g}V{own + 6}Q{x} {own} {x - 6} {own}'
            f'H{_CENTRE + _BOX[0] // 2}" stroke="currentColor" stroke-opacity=".55" stroke-dasharray="3 2"/>'
        )


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="currentColor" stroke-opacity=".55"/>'


def _late(seen: Followed | None, sites: list[Site]) -> list[Site]:
    """Who does not read the newest output."""
    if seen is None:
        return []
    return [site for newest, site in pairwise(sites) if newest not in seen.reads[site]]


#: What the legend says of a class of marks.
_EXTRAS = {"mark-weighed": ("weights of its own", _MIXED), "mark-table": ("a vector of the token", _TABLE)}


def _extras(mixer: Mixer, seen: Followed | None, sites: list[Site], height: int) -> Iterator[str]:
    """Marks of sites that weigh without sources to draw, and of those that look the token up."""
    if seen is None:
        return
    # Where arcs are drawn, they say it.
    arcs = any(mixer.sources(site) for site in sites)
    for site in sites:
        middle = _middle(site, height)
        if site in seen.weighing and not arcs:
            yield (f'<circle class="mark-weighed" cx="{_CENTRE + _BOX[0] // 2}" cy="{middle}" r="4" fill="{_MIXED}"/>')
        if site in seen.looking_up:
            x, y = _CENTRE + _BOX[0] // 2 + 34, middle - 8
            rows = "".join(f"M{x} {y + step}h16" for step in (4, 8, 12))
            yield (
                f'<path class="mark-table" d="M{x} {middle}H{_CENTRE + _BOX[0] // 2}" stroke="{_TABLE}"/>'
                f'<path d="M{x} {y}h16v16h-16z{rows}" stroke="{_TABLE}"/>'
            )


def _tail(plan: Plan, height: int) -> Iterator[str]:
    """An arrow from the tokens before, into the embedding."""
    if plan.tail is None:
        return
    number, middle, edge = plan.tail.length, _middle(None, height), _CENTRE - _BOX[0] // 2
    words = "the token before" if number == 1 else f"{number} tokens before"
    yield (
        f'<text x="{edge - 34}" y="{middle + 4}" text-anchor="end" fill="currentColor">{words}</text>'
        f'<path d="M{edge - 30} {middle}H{edge - 2}M{edge - 8} {middle - 4}l6 4l-6 4" stroke="currentColor"/>'
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


def _legend_of(extras: list[str], seen: Followed | None, late: list[Site]) -> list[tuple[str, str]]:
    """What the legend says of marks, of several streams and of lines past a box."""
    found = [entry for mark, entry in _EXTRAS.items() if any(mark in drawn for drawn in extras)]
    if seen is not None and seen.num_streams > 1:
        found.insert(0, (f"{seen.num_streams} streams", "currentColor"))
    if late:
        found.append(("past the newest output", "currentColor"))
    return found


def _legend(lent: bool, mixed: bool, height: int, extras: list[tuple[str, str]]) -> Iterator[str]:
    entries = [("keys", _KEYS), ("values", _VALUES)] if lent else []
    entries += [("mixed with weights", _MIXED)] if mixed else []
    entries += extras
    x = 8
    for text, colour in entries:
        yield f'<circle cx="{x}" cy="{height - 12}" r="3" fill="{colour}"/>'
        yield f'<text x="{x + 8}" y="{height - 8}" fill="currentColor">{text}</text>'
        x += 24 + 6 * len(text)


def _more_words(plan: Plan, seen: Followed | None, late: list[Site]) -> str:
    """What the marks say, for readers who do not see them."""
    if seen is None:
        return "; what its calls depend on could not be followed"
    counts = (
        (seen.num_streams if seen.num_streams > 1 else 0, "streams side by side"),
        (len(seen.weighing), "sites weigh what they read or add"),
        (len(seen.looking_up), "sites look up a vector of the token"),
        (len(late), "sites do not wait for the newest output"),
        (0 if plan.tail is None else plan.tail.length, "earlier tokens are kept for the embedding"),
    )
    return "".join(f"; {count} {words}" for count, words in counts if count)


def _words(mixer: Mixer, sites: list[Site], plan: Plan) -> str:
    reading = sum(bool(mixer.sources(site)) for site in sites)
    borrowing = sum((step,) != reads for each in (plan.k_reads, plan.v_reads) for step, reads in enumerate(each))
    return (
        f"{len(plan.order)} steps; {reading} sites combine the outputs of others with weights of their own; "
        f"keys or values are read from other steps {borrowing} times"
    )
