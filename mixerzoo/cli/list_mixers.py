"""`mixerzoo list`."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from mixerzoo.cli.common import JsonOption, console, print_json, table
from mixerzoo.cli.verbosity import detail, is_verbose
from mixerzoo.errors import MixerError, PluginError, error_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from mixerzoo.describe import Figures
    from mixerzoo.mixer import MixerEntry, Registry

#: The baseline, listed first.
BASELINE = "residual"
#: Columns of a terminal from which family and origin have columns of their own.
WIDE = 110
#: Length up to which an origin stays on one line in its own column.
_UNBROKEN = 28
#: Columns of a terminal below which what a mixer acts on stands below its name: beside it, words would break.
_NARROW = 72
#: Columns that words and figures need, and figures alone.
_REST, _FIGURES = 52, 33


class Row(NamedTuple):
    """A mixer and its figures, or why it has none.

    Attributes:
        entry: the mixer.
        figures: None where it has none.
        reason: why it has none.
        details: the traceback, where it is the mixer that is at fault.
    """

    entry: MixerEntry
    figures: Figures | None
    reason: str = ""
    details: str = ""


def command(
    as_json: JsonOption = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 2 if a plugin or a mixer fails, names clash, or a plugin changes the process."
        ),
    ] = False,
) -> None:
    """List the installed mixers.

    The figures are for default options on one decoder, so that they can be compared; `mixerzoo show NAME` has the
    formulas, `mixerzoo describe RECIPE` the figures of your own decoder.
    """
    from mixerzoo.mixer import load_registry

    registry = load_registry()
    rows = [_row(entry) for entry in _sorted(registry)]
    if as_json:
        print_json(_to_dict(registry, rows))
    else:
        _print(registry, rows)
    wrong = [registry.clash(name) for name in (*registry.clashes, *registry.overshadowed)]
    if registry.broken:
        wrong.append(f"plugins that cannot be loaded: {', '.join(b.plugin for b in registry.broken)}")
    wrong += [f"mixer {row.entry.mixer.name!r} of {_origin(row.entry)} fails: {row.reason}" for row in _failing(rows)]
    wrong += [f"plugin {plugin} changed {'; '.join(found)}" for plugin, found in registry.changes.items()]
    if strict and wrong:
        raise PluginError("\n".join(wrong))


def _sorted(registry: Registry) -> list[MixerEntry]:
    from mixerzoo.mixer import MixerCard

    families = get_args(get_type_hints(MixerCard)["family"])

    def place(entry: MixerEntry) -> tuple[bool, int, str]:
        return entry.mixer.name != BASELINE, families.index(entry.mixer.card.family), entry.mixer.name

    return sorted(registry.entries.values(), key=place)


def _row(entry: MixerEntry) -> Row:
    from mixerzoo.describe import COMPARED, figures, with_defaults
    from mixerzoo.mixer import guarded

    try:
        with guarded(entry.plugin, "being compared"):
            return Row(entry, figures(with_defaults(entry.mixer, COMPARED)))
    except KeyboardInterrupt:
        raise
    except MixerError as error:
        return Row(entry, None, error_line(error))
    except BaseException as error:  # noqa: BLE001  a mixer may fail in any way; the others are listed all the same
        return Row(entry, None, error_line(error), visible("".join(traceback.format_exception(error))))


def _failing(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.details]


def _to_dict(registry: Registry, rows: list[Row]) -> dict[str, Any]:
    mixers = []
    for entry, figures, reason, _ in rows:
        card = entry.mixer.card
        mixers.append(
            {
                "name": entry.mixer.name,
                "title": card.title,
                "summary": card.summary,
                "family": card.family,
                "acts_on": card.acts_on,
                "parameters": card.parameters,
                "kv_bytes_per_token": card.kv_bytes,
                "in_flight_bytes_per_token": card.in_flight_bytes,
                "compared": figures and figures._asdict(),
                "not_compared": reason,
                "paper": card.paper,
                "distribution": entry.distribution,
                "version": entry.version,
                "plugin": entry.plugin,
            }
        )
    broken = [{"plugin": b.plugin, "reason": b.reason, "details": b.details} for b in registry.broken]
    clashes = [{"name": name, "plugins": [e.plugin for e in found]} for name, found in registry.clashes.items()]
    overshadowed = [
        {"name": name, "plugins": [e.plugin for e in found]} for name, found in registry.overshadowed.items()
    ]
    failing = [
        {"name": row.entry.mixer.name, "plugin": row.entry.plugin, "reason": row.reason, "details": row.details}
        for row in _failing(rows)
    ]
    return {
        "mixers": mixers,
        "broken_plugins": broken,
        "failing_mixers": failing,
        "clashes": clashes,
        "overshadowed": overshadowed,
        "changes": [{"plugin": plugin, "changed": found} for plugin, found in registry.changes.items()],
    }


def _print(registry: Registry, rows: list[Row]) -> None:
    from rich.text import Text

    from mixerzoo.describe import COMPARED, TOKENS, short

    out = console()
    wide = out.width >= WIDE
    narrow, figured = out.width < _NARROW, ("Parameters", "Cache", "In flight")
    words = (["Family"] if wide else []) + ([] if narrow else ["Acts on"])
    listing = table("Mixer", *words, *figured, *(["From"] if wide else []))
    names = max(len(name) for name in ("Mixer", *(row.entry.mixer.name for row in rows)))
    papers = max((len(row.entry.mixer.card.paper) for row in rows), default=0)
    origins = max((len(_origin(row.entry)) for row in rows), default=0)
    # Fixed, so that only the column of words gives way.
    room = min(papers, out.width // 5) if wide else min(origins, out.width - _REST)
    listing.columns[0].width = first = max(names, out.width - _FIGURES if narrow else room)
    for column in listing.columns:
        if column.header in figured:
            column.justify, column.no_wrap = "right", True
        if column.header == "From":
            column.no_wrap = origins <= _UNBROKEN
    for entry, figures, reason, details in rows:
        card = entry.mixer.card
        cells = ("", "", "")
        if figures is not None:
            parameters, cache, in_flight = figures
            cells = (short(parameters), f"{cache:.2g}×", f"{in_flight:.3g}×")
        origin = _origin(entry)
        paper = _at_slashes(card.paper, first)
        below = (paper,) if wide else (card.family, paper, origin)
        # What the mixer itself says belongs here, what went wrong in it below the table.
        why = f"\nnot compared: {'it fails, see below' if details else reason}" if reason else ""
        acts_on = Text.assemble(card.acts_on, (why, "dim"))
        title = Text.assemble(
            (entry.mixer.name, "bold"),
            *((Text("\n"), acts_on) if narrow else ()),
            *((f"\n{line}", "dim") for line in below if line),
        )
        said = ([card.family] if wide else []) + ([] if narrow else [acts_on])
        listing.add_row(title, *said, *cells, *([origin] if wide else []))
        if not wide:
            listing.add_section()
    out.print(listing)
    shape, acts = COMPARED, "what it acts on, " if narrow else ""
    out.print(
        f"\nWith default options on {shape.num_layers} layers of hidden size {shape.hidden_size}: parameters that the "
        f"mixer adds; bytes of the cache at {TOKENS:,} tokens over residual's; bytes in flight per token over those of "
        "one hidden state. `mixerzoo show NAME` has the formulas."
        + ("" if wide else f" Below each name: {acts}its family, its paper, and the package that it comes from.")
    )
    _print_wrong(out, registry, rows)


def _at_slashes(path: str, width: int) -> str:
    """A path in as many lines as it takes, broken between its parts."""
    lines = [""]
    for part in re.split("(?<=/)", path):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _print_wrong(out: Console, registry: Registry, rows: list[Row]) -> None:
    """What cannot be used, below the table."""
    tracebacks = ":" if is_verbose() else "; `mixerzoo list -v` has the tracebacks:"
    if registry.broken:
        out.print(f"\nCould not be loaded ({len(registry.broken)}){tracebacks}")
        for broken in registry.broken:
            out.print(f"  {broken.plugin}: {broken.reason}", soft_wrap=True)
            detail(broken.details)
    failing = _failing(rows)
    if failing:
        out.print(f"\nFail on this decoder ({len(failing)}){tracebacks}")
        for row in failing:
            out.print(f"  {row.entry.plugin}: mixer {row.entry.mixer.name!r}: {row.reason}", soft_wrap=True)
            detail(row.details)
    if registry.clashes:
        out.print("\nCannot be used, because the name is not theirs alone:")
        for name in registry.clashes:
            out.print(f"  {registry.clash(name)}", soft_wrap=True)
    if registry.overshadowed:
        out.print("\nCannot be used, because a built-in mixer has the name:")
        for name in registry.overshadowed:
            out.print(f"  {registry.clash(name)}", soft_wrap=True)


def _origin(entry: MixerEntry) -> str:
    """The distribution that a mixer comes from, with its version."""
    return f"{entry.distribution} {entry.version}"
