"""FusedKV (arXiv 2512.03870): the plain residual stream. Of L layers the first ⌈L/2⌉ have keys and values of their own.

A layer above attends, at every token, to a ⊙ K⁰ + b ⊙ Kᵐ and c ⊙ V⁰ + d ⊙ Vᵐ, with Kᵐ and Vᵐ of the last layer that has
its own, and a and b equal on channels i and i + d/2 of a head, which RoPE turns together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.residual import in_flight_bytes

CASES = (
    ZooCase("fusedkv"),
    ZooCase("fusedkv", model={**LOOPED, **POST_ROPE}),
    ZooCase("fusedkv", model={"sliding_window": 3}, label="windowed"),
)
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.just({})


def slots(step: int, num_steps: int) -> tuple[tuple[int, ...], int | None]:
    """The slots whose keys and values a step attends to, and the window in which it sees them."""
    storing = math.ceil(num_steps / 2)
    if step < storing:
        return (step,), None
    return ((0, storing - 1) if storing > 1 else (0,)), None


class FusedKV(TokenMixer):
    """The residual stream.

    Args:
        embedding: of the token [D].
        keys: step → (a, b), [2, G, d/2].
        values: step → (c, d), [2, G, d].
    """

    def __init__(self, embedding: Tensor, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        super().__init__(embedding)
        self.keys, self.values = keys, values

    def fuse_kv(
        self, step: int, layer: int, keys: list[list[Tensor]], values: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        fused_k, fused_v = [], []
        for head in range(len(keys[0])):
            a, b = (torch.cat([half[head], half[head]]) for half in self.keys[step])
            c, d = (weight[head] for weight in self.values[step])
            fused_k.append(a * keys[0][head] + b * keys[1][head])
            fused_v.append(c * values[0][head] + d * values[1][head])
        return fused_k, fused_v


def fusing(mixer: Mixer) -> range:
    """Steps that fuse."""
    storing = math.ceil(mixer.shape.num_steps / 2)
    return range(storing, mixer.shape.num_steps) if storing > 1 else range(0)


def begin(mixer: Mixer) -> Begin:
    state = mixer.state_dict()
    keys = {step: state[f"key_sums.{step}"] for step in fusing(mixer)}
    values = {step: state[f"value_sums.{step}"] for step in fusing(mixer)}
    return lambda embedding, token: FusedKV(embedding, keys, values)


def flops_per_token(mixer: Mixer) -> int:
    """Two multiplications and an addition for each number of a key and of a value."""
    return 6 * mixer.shape.num_kv_heads * mixer.shape.head_dim * len(fusing(mixer))


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The two layers that are fused."""
    if site.branch == "mlp" or site.step not in fusing(mixer):
        return ()
    order, middle = mixer.shape.order, math.ceil(mixer.shape.num_steps / 2) - 1
    return Site(0, order[0], "attention"), Site(middle, order[middle], "attention")


def initial(mixer: Mixer) -> dict[str, float | Tensor]:
    found: dict[str, float | Tensor] = {}
    for step in fusing(mixer):
        heads, size = mixer.shape.num_kv_heads, mixer.shape.head_dim
        found[f"key_sums.{step}"] = torch.stack([torch.zeros(heads, size // 2), torch.ones(heads, size // 2)])
        found[f"value_sums.{step}"] = torch.stack([torch.ones(heads, size), torch.zeros(heads, size)])
    return found


def plan(mixer: Mixer) -> dict[str, Any]:
    """Which slots each step reads; nothing is fused where one layer stores."""
    reads = tuple(slots(step, mixer.shape.num_steps)[0] for step in range(mixer.shape.num_steps))
    return {"k_reads": reads, "v_reads": reads, "hooks": frozenset({"fuse_kv"} if fusing(mixer) else ())}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, plan=plan)
