"""`mixerzoo list`."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from mixerzoo.cli.common import JsonOption, console, print_json, table
from mixerzoo.errors import MixerError, PluginError, visible

if TYPE_CHECKING:
    from rich.console import Console

    from mixerzoo.mixer import DecoderShape, Mixer, MixerEntry, Registry

#: The baseline, listed first.
BASELINE = "residual"
#: Tokens in the caches that are compared.
TOKENS = 4096
#: Columns of a terminal from which family and origin have columns of their own.
WIDE = 110
#: Length up to which an origin stays on one line in its own column.
_UNBROKEN = 28
#: Columns of a narrow terminal that words and figures need.
_REST = 52


class Figures(NamedTuple):
    """What a mixer costs on the compared decoder, with default options.

    Attributes:
        parameters: that it adds.
        cache_relative: bytes of the cache over residual's.
        in_flight_relative: bytes in flight per token over those of one hidden state.
    """

    parameters: int
    cache_relative: float
    in_flight_relative: float


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
    from mixerzoo.mixer import guarded, one_line

    try:
        with guarded(entry.plugin, "being compared"):
            return Row(entry, _figures(entry.mixer))
    except KeyboardInterrupt:
        raise
    except MixerError as error:
        return Row(entry, None, one_line(error))
    except BaseException as error:  # noqa: BLE001  a mixer may fail in any way; the others are listed all the same
        return Row(entry, None, one_line(error), visible("".join(traceback.format_exception(error))))


def _figures(mixer_class: type[Mixer]) -> Figures:
    """A mixer's figures.

    Raises:
        MixerError: an option has no default, or the mixer does not take the compared decoder.
        Exception: whatever a faulty mixer raises.
    """
    import torch
    from pydantic import ValidationError

    from mixerzoo.mixer import Plan
    from mixerzoo.validation import problems

    shape = _compared()
    try:
        config = mixer_class.Config()
    except ValidationError as error:
        raise MixerError("; ".join(problem.message for problem in problems(error, mixer_class.Config, {}))) from error
    with torch.device("meta"):
        mixer = mixer_class(config, shape)
    plan = mixer.plan()
    if not isinstance(plan, Plan):
        raise PluginError(f"plan() returned {plan!r}, which is not a mixerzoo.Plan")
    in_flight = mixer.in_flight_bytes(torch.bfloat16)
    if type(in_flight) is not int:
        raise PluginError(f"in_flight_bytes() returned {in_flight!r}, which is not a whole number")
    return Figures(
        sum(parameter.numel() for parameter in mixer.parameters()),
        plan.elements(shape, TOKENS) / Plan.plain(shape.order).elements(shape, TOKENS),
        in_flight / (shape.hidden_size * torch.bfloat16.itemsize),
    )


def _failing(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.details]


def _compared() -> DecoderShape:
    """A decoder of 24 layers and about 350 million parameters."""
    from mixerzoo.mixer import DecoderShape

    return DecoderShape(
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        head_dim=64,
        order=tuple(range(24)),
        norm_eps=1e-5,
        vocab_size=50304,
    )


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

    out = console()
    wide = out.width >= WIDE
    columns = ("Mixer", "Acts on", "Parameters", "Cache", "In flight")
    listing = table(*columns[:1], "Family", *columns[1:], "From") if wide else table(*columns)
    names = max(len(name) for name in ("Mixer", *(row.entry.mixer.name for row in rows)))
    papers = max((len(row.entry.mixer.card.paper) for row in rows), default=0)
    origins = max((len(_origin(row.entry)) for row in rows), default=0)
    # Fixed, so that only the column of words gives way.
    listing.columns[0].width = max(names, min(papers, out.width // 5) if wide else min(origins, out.width - _REST))
    for column in listing.columns:
        if column.header in ("Parameters", "Cache", "In flight"):
            column.justify, column.no_wrap = "right", True
        if column.header == "From":
            column.no_wrap = origins <= _UNBROKEN
    for entry, figures, reason, details in rows:
        card = entry.mixer.card
        cells = ("", "", "")
        if figures is not None:
            parameters, cache, in_flight = figures
            cells = (_short(parameters), f"{cache:.2g}×", f"{in_flight:.3g}×")
        origin = _origin(entry)
        below = (card.paper,) if wide else (card.family, card.paper, origin)
        title = Text.assemble((entry.mixer.name, "bold"), *((f"\n{line}", "dim") for line in below if line))
        # What the mixer itself says belongs here, what went wrong in it below the table.
        why = f"\nnot compared: {'it fails, see below' if details else reason}" if reason else ""
        acts_on = Text.assemble(card.acts_on, (why, "dim"))
        listing.add_row(title, *([card.family] if wide else []), acts_on, *cells, *([origin] if wide else []))
        if not wide:
            listing.add_section()
    out.print(listing)
    shape = _compared()
    out.print(
        f"\nWith default options on {shape.num_layers} layers of hidden size {shape.hidden_size}: parameters that the "
        f"mixer adds; bytes of the cache at {TOKENS:,} tokens over residual's; bytes in flight per token over those of "
        "one hidden state. `mixerzoo show NAME` has the formulas."
        + ("" if wide else " Below each name: its family, its paper, and the package that it comes from.")
    )
    _print_wrong(out, registry, rows)


def _print_wrong(out: Console, registry: Registry, rows: list[Row]) -> None:
    """What cannot be used, below the table."""
    if registry.broken:
        out.print(f"\nCould not be loaded ({len(registry.broken)}); `mixerzoo list --json` has the tracebacks:")
        for broken in registry.broken:
            out.print(f"  {broken.plugin}: {broken.reason}", soft_wrap=True)
    failing = _failing(rows)
    if failing:
        out.print(f"\nFail on this decoder ({len(failing)}); `mixerzoo list --json` has the tracebacks:")
        for row in failing:
            out.print(f"  {row.entry.plugin}: mixer {row.entry.mixer.name!r}: {row.reason}", soft_wrap=True)
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


def _short(number: int) -> str:
    """A count in at most five characters: 0, 768, 98.3K, 1.2M."""
    for unit, size in (("M", 1_000_000), ("K", 1000)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
