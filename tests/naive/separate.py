"""Separate inputs of the query, key and value projections: the stream x, x + back · e, and the embedding e."""

from __future__ import annotations

from torch import Tensor

from naive.residual import Residual


class Separate(Residual):
    """The residual stream; attention reads three vectors.

    Args:
        embedding: of the token, e [D].
        back: factor of e in the key's input.
    """

    def __init__(self, embedding: Tensor, back: float) -> None:
        super().__init__(embedding)
        self.embedding, self.back = embedding, back
        self.at_attention = True

    def read(self) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if not self.at_attention:
            return self.x
        return self.x, self.x + self.back * self.embedding, self.embedding

    def write(self, y: Tensor) -> None:
        super().write(y)
        self.at_attention = not self.at_attention
