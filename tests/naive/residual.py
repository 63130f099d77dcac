"""The plain residual stream: x ← x + f(norm(x))."""

from __future__ import annotations

from torch import Tensor


class Residual:
    """One running sum.

    Args:
        embedding: of the token [D].
    """

    def __init__(self, embedding: Tensor) -> None:
        self.x = embedding

    def read(self) -> Tensor:
        return self.x

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        return v

    def write(self, y: Tensor) -> None:
        self.x = self.x + y

    def finish(self) -> Tensor:
        return self.x
