"""MUDDFormer (arXiv 2502.12170): X_0 is the embedding, X_i the output of block i.

After block i the token's X_i makes weights over X_0 … X_i, four sets of them, and the next block reads four sums:

    (a^q, a^k, a^v, a^r) = W2·GELU(W1·x̂) + b,  x̂ = X_i / √(mean(X_i²) + ε)
    x^c = Σ_{j ≤ i} a^c_j·X_j

Its attention takes queries from x^q, keys from x^k and values from x^v, and adds its output to x^r. After the last
block there is one set, whose sum the final norm reads. The first block reads X_0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, Vectors, rms_norm, weighted_sum

CASES = (
    ZooCase("mudd"),
    ZooCase("mudd", {"last_expansion": 1}, POST_ROPE),
    ZooCase("mudd", {"last_expansion": 3}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"last_expansion": st.integers(1, 5)})


class Weigher(NamedTuple):
    """W1 [h, D], W2 [ways·n, h] and b [ways, n]; rows of W2 by way, then by source."""

    w1: Tensor
    w2: Tensor
    b: Tensor


class Mudd(TokenMixer):
    """All block outputs so far, and the stream inside the present block.

    Args:
        embedding: of the token [D].
        weighers: i → what weighs X_0 … X_i.
        eps: ε.
    """

    def __init__(self, embedding: Tensor, weighers: Mapping[int, Weigher], eps: float) -> None:
        super().__init__(embedding)
        self.weighers, self.eps = weighers, eps
        self.outputs = [embedding]

    def sums(self) -> list[Tensor]:
        """x^c for every way c."""
        weigher, present = self.weighers[len(self.outputs) - 1], self.outputs[-1]
        normed = rms_norm(present, torch.ones_like(present), self.eps)
        hidden = torch.stack([gelu(row @ normed) for row in weigher.w1])
        dynamic = (weigher.w2 @ hidden).split(len(self.outputs))
        return [weighted_sum(list(a + b), self.outputs) for a, b in zip(dynamic, weigher.b, strict=True)]

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        if branch == "mlp" or step == 0:
            return self.x
        q, k, v, self.x = self.sums()
        return q, k, v

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + y
        if branch == "mlp":
            self.outputs.append(self.x)

    def finish(self) -> Tensor:
        (x,) = self.sums()
        return x


def gelu(z: Tensor) -> Tensor:
    """z·Φ(z), Φ the distribution function of the standard normal."""
    return z * (1 + torch.erf(z / math.sqrt(2))) / 2


def begin(mixer: Mixer) -> Begin:
    state, eps = mixer.state_dict(), mixer.shape.norm_eps
    weighers = {
        i: Weigher(*(state[f"mixes.{i}.{name}"] for name in ("w1", "w2", "bias")))
        for i in range(1, mixer.shape.num_steps + 1)
    }
    return lambda embedding, token: Mudd(embedding, weighers, eps)


def ways(mixer: Mixer, i: int) -> int:
    """How many sums are made after block i."""
    return 1 if i == mixer.shape.num_steps else 4


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """After a block: all outputs and the weights of the next sums. Inside one: all outputs and the stream."""
    size, most = mixer.shape.hidden_size, 0
    for i in range(1, mixer.shape.num_steps + 1):
        inside = i * size + size
        after = (i + 1) * size + ways(mixer, i) * (i + 1)
        most = max(most, inside, after)
    return most * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    size, last, flops = mixer.shape.hidden_size, mixer.shape.num_steps, 0
    for i in range(1, last + 1):
        weights = ways(mixer, i) * (i + 1)
        hidden = weights * (mixer.config.model_dump()["last_expansion"] if i == last else 1)
        # The norm, two matrices, the GELU as one operation, the static weights; then the sums.
        flops += 3 * size + 2 * size * hidden + 2 * hidden * weights + hidden + weights
        flops += 2 * size * weights
    return flops


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The embedding and all blocks so far, each by its last sublayer."""
    if site.step == 0 or site.branch == "mlp":
        return ()
    return (None, *(Site(step, mixer.shape.order[step], "mlp") for step in range(site.step)))


def plan(mixer: Mixer) -> dict[str, bool]:
    """Queries, keys and values are projected from sums of their own."""
    return {"separate_inputs": True}


def shown(mixer: Mixer) -> tuple[str, ...]:
    """Attentions but the first, and the head."""
    return ("read", "finish") if mixer.shape.num_steps > 1 else ("finish",)


def initial(mixer: Mixer) -> dict[str, float | Tensor | Drawn]:
    """The present block with weight 1 in every sum, all others with 0; of the MLP the first matrix is drawn."""
    found: dict[str, float | Tensor | Drawn] = {}
    for i in range(1, mixer.shape.num_steps + 1):
        found[f"mixes.{i}.w1"] = Drawn()
        found[f"mixes.{i}.w2"] = 0.0
        found[f"mixes.{i}.bias"] = torch.eye(i + 1)[-1]
    return found


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """The MLP's two projections decay."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict() if name[-2:] in ("w1", "w2")}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, plan=plan, shown=shown, roles=roles)
