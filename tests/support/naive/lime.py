"""LIMe (arXiv 2502.09245): the keys and values of layer l > 0 are sums over all layers j ≤ l and their heads b'.

    (k̃, ṽ)_b = Σ_{j, b'} R_{b, (j, b')}·(k, v)_{b'}^j

The sources are what the layers project, before head norm and RoPE; never a mix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, weighted_sum

CASES = (
    ZooCase("lime"),
    ZooCase("lime", {"initial": "uniform"}, POST_ROPE),
    ZooCase("lime", model=LOOPED),
)
OPTIONS = st.fixed_dictionaries({"initial": st.sampled_from(["identity", "uniform"])})


class Lime(TokenMixer):
    """The residual stream, and the projected keys and values of the steps so far.

    Args:
        embedding: of the token [D].
        routers: step → R [G, (step + 1)·G], for every step after the first; columns by step, then by head.
    """

    def __init__(self, embedding: Tensor, routers: Mapping[int, Tensor]) -> None:
        super().__init__(embedding)
        self.routers = routers
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def mix_raw_kv(self, step: int, layer: int, k: list[Tensor], v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        self.keys += k
        self.values += v
        if step == 0:
            return k, v
        rows = self.routers[step]
        return [weighted_sum(row, self.keys) for row in rows], [weighted_sum(row, self.values) for row in rows]


def begin(mixer: Mixer) -> Begin:
    routers = {step: mixer.state_dict()[f"routers.{step}"] for step in range(1, mixer.shape.num_steps)}
    return lambda embedding, token: Lime(embedding, routers)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and before the last layer the keys and values of all others."""
    shape = mixer.shape
    kept = 2 * shape.num_kv_heads * shape.head_dim * (shape.num_steps - 1)
    return (shape.hidden_size + kept) * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """A multiplication and an addition for each weight and number, of keys and of values."""
    shape = mixer.shape
    weights = sum(shape.num_kv_heads * shape.num_kv_heads * (step + 1) for step in range(1, shape.num_steps))
    return 2 * 2 * shape.head_dim * weights


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """All attention sublayers up to this one."""
    if site.step == 0 or site.branch == "mlp":
        return ()
    return tuple(Site(step, mixer.shape.order[step], "attention") for step in range(site.step + 1))


def initial(mixer: Mixer) -> dict[str, Tensor | Drawn]:
    """1 from a layer's own heads each to itself; from all others 0, or uniform of variance one over their number."""
    heads, found = mixer.shape.num_kv_heads, {}
    for step in range(1, mixer.shape.num_steps):
        start = torch.cat([torch.zeros(heads, step * heads), torch.eye(heads)], dim=1)
        spread = torch.zeros_like(start)
        spread[:, : step * heads] = math.sqrt(1 / start.size(1))
        uniform = mixer.config.model_dump()["initial"] == "uniform"
        found[f"routers.{step}"] = Drawn(spread, start) if uniform else start
    return found


def plan(mixer: Mixer) -> dict[str, bool]:
    """It needs each layer's own keys and values."""
    return {"needs_own_kv": True}


#: So many routers that their spread can be told.
DEEP = (Case({**SMALL, "num_layers": 8}, {"initial": "uniform"}),)
REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, cases=DEEP, plan=plan)
