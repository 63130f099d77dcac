"""Separate inputs of the query, key and value projections: the stream x, x + back · e, and the embedding e."""

from __future__ import annotations

from torch import Tensor

from case import ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer, Vectors

CASES = (ZooCase("separate", {"back": 0.7}),)


class Separate(TokenMixer):
    """The residual stream; attention reads three vectors.

    Args:
        embedding: of the token, e [D].
        back: factor of e in the key's input.
    """

    def __init__(self, embedding: Tensor, back: float) -> None:
        super().__init__(embedding)
        self.embedding, self.back = embedding, back

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        if branch == "mlp":
            return self.x
        return self.x, self.x + self.back * self.embedding, self.embedding


def begin(mixer: Mixer) -> Begin:
    back = mixer.config.model_dump()["back"]
    return lambda embedding, token: Separate(embedding, back)


REFERENCE = Reference(begin)
