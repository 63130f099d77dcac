"""Delta Attention Residuals (arXiv 2605.18855): h = x + Σ_j α_j v_j with α = softmax_j(w · RMSNorm_γ(v_j)).

x is the plain sum of the embedding and all outputs so far. v_0 is the embedding and v_j the sum of the outputs of the
j-th S sublayers, of blocks that are finished. The first sublayer reads x alone, and so does the final norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.attn_res import Query, mix

CASES = (
    ZooCase("delta_attn_res"),
    ZooCase("delta_attn_res", {"block_size": 2}, POST_ROPE),
    ZooCase("delta_attn_res", {"block_size": 3}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"block_size": st.integers(1, 6)})


class DeltaAttnRes(TokenMixer):
    """The stream, and what it is made of.

    Args:
        embedding: of the token [D].
        queries: by number of sublayers done before the read.
        eps: of the norms.
        block_size: S.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float, block_size: int) -> None:
        super().__init__(embedding)
        self.queries, self.eps, self.block_size = queries, eps, block_size
        self.outputs: list[Tensor] = []
        self.embedding = embedding

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        done = len(self.outputs)
        if done == 0:
            return self.x
        sources = [self.embedding]
        for end in range(self.block_size, done + 1, self.block_size):
            sources.append(torch.stack(self.outputs[end - self.block_size : end]).sum(0))
        if len(sources) == 1:
            return self.x + sources[0]
        return self.x + mix(self.queries[done], sources, self.eps)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        super().write(step, layer, branch, y)
        self.outputs.append(y)


def begin(mixer: Mixer) -> Begin:
    state = mixer.state_dict()
    size = mixer.config.model_dump()["block_size"]
    reads = range(size, 2 * mixer.shape.num_steps)
    queries = {i: Query(state[f"queries.{i}.query"], state[f"queries.{i}.gain"]) for i in reads}
    return lambda embedding, token: DeltaAttnRes(embedding, queries, mixer.shape.norm_eps, size)


def num_sources(mixer: Mixer, done: int) -> int:
    """Sources of the read after so many sublayers."""
    return 1 + done // int(mixer.config.model_dump()["block_size"]) if done else 0


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream; sources, and a float32 (float64) score of each and each of its reads; an open block to be read."""
    hidden = mixer.shape.hidden_size * dtype.itemsize
    number = max(dtype.itemsize, 4)
    size = int(mixer.config.model_dump()["block_size"])
    last = 2 * mixer.shape.num_steps - 1
    peak = 0
    for done in range(1, last + 1):
        closes = -(-done // size) * size
        is_open = done % size != 0 and closes <= last
        count = num_sources(mixer, done)
        scores = sum(len(range(max(size, end), last + 1)) for end in range(0, count * size, size))
        peak = max(peak, hidden * (1 + is_open + count) + number * scores)
    return peak


def flops_per_token(mixer: Mixer) -> int:
    """For each of several sources a product with the query and a weighted sum, and one addition of what comes of it."""
    reads = [num_sources(mixer, done) for done in range(1, 2 * mixer.shape.num_steps)]
    return sum(mixer.shape.hidden_size * (1 if number == 1 else 4 * number + 1) for number in reads)


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The embedding, and the last sublayer of each finished block."""
    done = 2 * site.step + (site.branch == "mlp")
    size = int(mixer.config.model_dump()["block_size"])
    if done == 0:
        return ()
    return (None, *(mixer.shape.sites()[end - 1] for end in range(size, done + 1, size)))


def shown(mixer: Mixer) -> tuple[str, ...]:
    """Every read of several sources."""
    return ("read",) if any(len(sources(mixer, site)) > 1 for site in mixer.shape.sites()) else ()


def initial(mixer: Mixer) -> dict[str, float]:
    found: dict[str, float] = {}
    for number in range(int(mixer.config.model_dump()["block_size"]), 2 * mixer.shape.num_steps):
        found |= {f"queries.{number}.query": 0.0, f"queries.{number}.gain": 1.0}
    return found


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, shown=shown)
