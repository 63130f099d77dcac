"""DenseFormer (arXiv 2402.02622).

X_0 is the embedding, X_t = block_t(y_{t−1}) and y_0 = X_0. If p divides t, y_t = Σ_j a_{t,j} X_j over the
j ≤ t with j ≡ t (mod k), ascending; otherwise y_t = X_t. The head reads y_L. Averages read the raw X_j, never
an earlier y_j.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from naive.decoder import weighted_sum


class DenseFormer:
    """A weighted average of all block outputs after each block.

    Args:
        embedding: of the token [D].
        alphas: t → a_t [⌊t/k⌋ + 1], for every t from 1 to L that p divides.
        dilation: k.
        period: p.
    """

    def __init__(self, embedding: Tensor, alphas: Mapping[int, Tensor], dilation: int, period: int) -> None:
        self.alphas, self.dilation, self.period = alphas, dilation, period
        self.raw = [embedding]
        self.x = embedding
        self.sublayers_in_block = 0

    def read(self) -> Tensor:
        return self.x

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        return v

    def write(self, y: Tensor) -> None:
        self.x = self.x + y
        self.sublayers_in_block += 1
        if self.sublayers_in_block == 2:
            self.sublayers_in_block = 0
            self.end_block()

    def end_block(self) -> None:
        """X_t is complete: keep it, and replace the stream by y_t."""
        t = len(self.raw)
        self.raw.append(self.x)
        if t % self.period == 0:
            averaged = [self.raw[j] for j in range(t + 1) if j % self.dilation == t % self.dilation]
            self.x = weighted_sum(list(self.alphas[t]), averaged)

    def finish(self) -> Tensor:
        return self.x
