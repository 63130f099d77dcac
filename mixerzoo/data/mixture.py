"""Draws documents from several sources, so that their shares of the tokens are the weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from mixerzoo.data.encoding import Encoded

# By how many tokens, times its weight, a source may be ahead of its share and still be drawn.
_SLACK = 1 << 14


class Mixture:
    """The parts of documents of several sources, as they are drawn; to be iterated over once.

    The next document comes from a source drawn with a probability in proportion to how far it is behind: behind its
    share of all tokens so far and of some more. So no source is ahead of its share by more than its share of those and
    one document. The draw is a function of the seed and of the lengths of the documents.

    Args:
        streams: the parts of each source's documents, in order.
        weights: of the sources; they sum to 1.
        seed: of the draw.

    Attributes:
        ended: the source that has no document left for the draw, which ends with it; None while it goes on.
        taken: tokens of each source so far, with one for the end of each document.
    """

    def __init__(self, streams: Sequence[Iterator[Encoded[int]]], weights: Sequence[float], seed: int) -> None:
        self.ended: int | None = None
        self.taken = [0] * len(streams)
        self._streams, self._weights = streams, weights
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[Encoded[int]]:
        while True:
            source = self._next_source()
            ends = False
            while not ends:
                part = next(self._streams[source], None)
                if part is None:
                    self.ended = source
                    return
                ends = part.ends
                self.taken[source] += part.num_tokens + ends
                yield part

    def _next_source(self) -> int:
        total = sum(self.taken) + _SLACK
        behind = [max(0.0, weight * total - taken) for weight, taken in zip(self._weights, self.taken, strict=True)]
        place = self._random.random() * sum(behind)
        for source, share in enumerate(behind):
            place -= share
            if place < 0:
                return source
        # Rounding alone comes here.
        return max(range(len(behind)), key=behind.__getitem__)
