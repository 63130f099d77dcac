"""Attention Residuals (arXiv 2603.15031): h = Σ_i α_i v_i with α = softmax_i(w · RMSNorm_γ(v_i)).

Every sublayer reads such an h, and so does the final norm; there is no other residual. The three classes
differ in what the sources v_i are. The read after n sublayers has number n, so reads count from 0 to 2L.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from naive.decoder import rms_norm, softmax, weighted_sum


class Query(NamedTuple):
    """The parameters of one read.

    Attributes:
        w: the query [D].
        gain: γ of the norm [D].
        bias: scalar added to the last source's logit (`Snapshot` only).
    """

    w: Tensor
    gain: Tensor
    bias: Tensor | None = None


def mix(query: Query, sources: list[Tensor], eps: float) -> Tensor:
    """The weighted sum of the sources [D]; there is no factor 1/√D.

    Args:
        query: parameters of this read.
        sources: vectors [D].
        eps: of the norm.
    """
    logits = [query.w @ rms_norm(source, query.gain, eps) for source in sources]
    if query.bias is not None:
        logits[-1] = logits[-1] + query.bias
    return weighted_sum(softmax(logits), sources)


class KimiFull:
    """Sources are the embedding and the output of every sublayer so far.

    Args:
        embedding: of the token [D].
        queries: by number of the read; a read of a single source has none and returns it unchanged.
        eps: of the norms.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float) -> None:
        self.queries, self.eps = queries, eps
        self.sources = [embedding]

    def read(self) -> Tensor:
        if len(self.sources) == 1:
            return self.sources[0]
        sublayers_done = len(self.sources) - 1
        return mix(self.queries[sublayers_done], self.sources, self.eps)

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        return v

    def write(self, y: Tensor) -> None:
        self.sources.append(y)

    def finish(self) -> Tensor:
        return self.read()


class KimiBlock:
    """The outputs of each block of S sublayers are summed into one source.

    Inside a block the sum so far is one more source; before the block's first output there is none.

    Args:
        embedding: of the token [D].
        queries: by number of the read; a read of a single source has none and returns it unchanged.
        eps: of the norms.
        block_size: S.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float, block_size: int) -> None:
        self.queries, self.eps, self.block_size = queries, eps, block_size
        self.finished = [embedding]
        self.block: list[Tensor] = []
        self.sublayers_done = 0

    def read(self) -> Tensor:
        sources = list(self.finished)
        if self.block:
            sources.append(sum(self.block[1:], start=self.block[0]))
        if len(sources) == 1:
            return sources[0]
        return mix(self.queries[self.sublayers_done], sources, self.eps)

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        return v

    def write(self, y: Tensor) -> None:
        self.sublayers_done += 1
        self.block.append(y)
        if len(self.block) == self.block_size:
            self.finished.append(sum(self.block[1:], start=self.block[0]))
            self.block = []

    def finish(self) -> Tensor:
        return self.read()


class Snapshot:
    """Sources are snapshots of a running stream (the embedding first) and the stream itself.

    The stream is never reset. At the end of a layer, if at least S sublayers have passed since the last
    snapshot, the stream is appended to them. The stream's logit, the last, has a learned bias.

    Args:
        embedding: of the token [D].
        queries: by number of the read, each with a bias.
        eps: of the norms.
        block_size: S, in sublayers.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float, block_size: int) -> None:
        self.queries, self.eps, self.block_size = queries, eps, block_size
        self.snapshots = [embedding]
        self.stream = embedding
        self.sublayers_done = 0
        self.sublayers_since_snapshot = 0

    def read(self) -> Tensor:
        return mix(self.queries[self.sublayers_done], [*self.snapshots, self.stream], self.eps)

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        return v

    def write(self, y: Tensor) -> None:
        self.stream = self.stream + y
        self.sublayers_done += 1
        self.sublayers_since_snapshot += 1
        layer_ends = self.sublayers_done % 2 == 0
        if layer_ends and self.sublayers_since_snapshot >= self.block_size:
            self.snapshots.append(self.stream)
            self.sublayers_since_snapshot = 0

    def finish(self) -> Tensor:
        return self.read()
