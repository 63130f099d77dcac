"""Who reads whom, in characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mixerzoo.mixer import Branch, Mixer, Site
from mixerzoo.model import Decoder

#: Pictures with more rows than this merge rows of one pattern, and then leave out the middle.
MAX_ROWS = 24


class _Row(NamedTuple):
    """One reader, or a run of neighbours that read by one rule.

    Attributes:
        label: names the readers.
        own: column of the last reader's own output.
        always: columns that every reader of the row reads.
        ever: columns that some reader of the row reads.
    """

    label: str
    own: int
    always: frozenset[int]
    ever: frozenset[int]


def picture(model: Decoder | Mixer, width: int = 80) -> str:
    """Who reads whom, in characters.

    Rows are the sites that combine others' outputs with weights of their own (`Mixer.sources`), columns the
    embedding and what each layer offers. Deep decoders are shown compactly: rows that read by one rule
    are merged, and neighbouring columns share a character.

    Args:
        model: a decoder or its mixer.
        width: characters in a line, at least 40.
    """
    mixer = model.mixer if isinstance(model, Decoder) else model
    order = mixer.plan().order
    sites = [Site(step, layer, branch) for step, layer in enumerate(order) for branch in ("attention", "mlp")]
    reads = {site: found for site in sites if (found := mixer.sources(site))}
    if not reads:
        return "No site combines the outputs of others with weights of its own."
    offering = {source.branch for found in reads.values() for source in found if source is not None}
    reading = {site.branch for site in reads}
    per_step = 2 if len(offering) == 2 else 1

    def column(source: Site | None) -> int:
        if source is None:
            return 0
        return 1 + per_step * source.step + (per_step == 2 and source.branch == "mlp")

    looped = list(order) != list(range(len(order)))
    labels = {
        site: f"{site.step}{site.branch[0] if len(reading) == 2 else ''}{f'({site.layer})' if looped else ''}"
        for site in reads
    }
    rows = []
    for site, found in reads.items():
        columns = frozenset(map(column, found))
        rows.append(_Row(labels[site], column(site), columns, columns))
    if len(rows) > MAX_ROWS:
        rows = _merged(rows)
    names = ["e"] + [f"{step}{part}" for step in range(len(order)) for part in ("am" if per_step == 2 else ("",))]
    unit = "step" if looped else "layer"
    caption = [
        f"rows     {_branches(reading)} of a {unit}{', as step(layer)' if looped else ''}",
        f"columns  e: the embedding, then {_branches(offering)} of a {unit}",
    ]
    return "\n".join([*_grid(rows, names, width), *caption])


def _branches(branches: set[Branch]) -> str:
    if len(branches) == 2:
        return "attention (a) and MLP (m)"
    return "MLP" if branches == {"mlp"} else "attention"


def _merged(rows: Sequence[_Row]) -> list[_Row]:
    """Rows with each longest run of neighbours that follow one rule made one row."""
    merged: list[_Row] = []
    start = 0
    while start < len(rows):
        rule = _Rule()
        stop = start
        while stop < len(rows) and rule.takes(rows[stop]):
            stop += 1
        run = rows[start:stop]
        merged.append(
            _Row(
                label=run[0].label if len(run) == 1 else f"{run[0].label}–{run[-1].label}",
                own=run[-1].own,
                always=frozenset.intersection(*(row.always for row in run)),
                ever=frozenset.union(*(row.ever for row in run)),
            )
        )
        start = stop
    return merged


class _Rule:
    """Each row reads the columns that all of them read and a stretch that moves along with it.

    Sets are the bits of whole numbers: hundreds of rows are hundreds of thousands of comparisons.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int]] = []
        self._fixed = self._moving = -1

    def takes(self, row: _Row) -> bool:
        """Whether a further row follows the rule of those before; a first one always does."""
        always = sum(1 << column for column in row.always)
        # Seen from the row itself, a column at distance d is bit _FAR − d.
        fixed, moving = self._fixed & always, self._moving & (always << (_FAR - row.own))
        rows = [*self._rows, (row.own, always)]
        stretch = moving >> max(0, (moving & -moving).bit_length() - 1)
        if rows[1:] and (
            stretch & (stretch + 1) or any(each != fixed | (moving >> (_FAR - own)) for own, each in rows)
        ):
            return False
        self._rows, self._fixed, self._moving = rows, fixed, moving
        return True


#: More columns than a picture has.
_FAR = 1 << 14


def _grid(rows: Sequence[_Row], names: Sequence[str], width: int) -> list[str]:
    """Header, rows and legend."""
    label_width = max(len(row.label) for row in rows)
    cell = max(map(len, names)) + 1
    wide = label_width + 1 + cell * len(names) <= width
    margin = label_width + (1 if wide else 2)
    # The embedding keeps a column of its own; the others share one where they do not fit.
    share = 1 if wide else -(-(len(names) - 1) // (width - margin - 3))
    bins = [range(1), *(range(i, min(i + share, len(names))) for i in range(1, len(names), share))]
    if wide:
        header = "".join(name.rjust(cell) for name in names)
    else:
        cell = 1
        marks = {0: "e", **{i: names[bins[i][0]] for i in range(1, len(bins), 10)}}
        header = ""
        for i, mark in marks.items():
            header = header.ljust(i) + mark
    reads_own = any(row.own in row.ever for row in rows)
    lines = [" " * margin + header]
    for row in rows:
        marks_in_row = (_mark(row, columns, row.own + reads_own).rjust(cell) for columns in bins)
        label = row.label.rjust(label_width).ljust(margin)
        lines.append((label + "".join(marks_in_row)).rstrip())
    if len(rows) > MAX_ROWS:
        kept = MAX_ROWS // 2
        lines[1 + kept : 1 + len(rows) - kept] = [f"{'⋮':>{label_width}}  {len(rows) - 2 * kept} more rows"]
    partly = share > 1 or any(row.always != row.ever for row in rows)
    lines.append("● read by all   ○ by some   · by none" if partly else "● read   · not read")
    return lines


def _mark(row: _Row, columns: range, end: int) -> str:
    """The character of a row in columns that share one; ``end`` is the first column that comes too late."""
    if columns[0] >= end:
        return " "
    if row.always.issuperset(columns):
        return "●"
    return "○" if not row.ever.isdisjoint(columns) else "·"
