"""How long what a step gave must be kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def held_sources(reads: Sequence[Collection[int]]) -> tuple[tuple[int, ...], ...]:
    """For each reader the sources that are still needed once it is done: those that a later one reads, ascending.

    Args:
        reads: for each reader, from 0, the numbers of the sources that it reads. Source i is there from reader i on.
    """
    last_reader = {source: reader for reader, read in enumerate(reads) for source in read}
    return tuple(
        tuple(source for source in sorted(last_reader) if source <= reader < last_reader[source])
        for reader in range(len(reads))
    )
