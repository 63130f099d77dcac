"""SATFormer (arXiv 2605.03953): v_b ← v_b + g_b·v⁰_b for every layer after the first and every key/value head b.

v⁰ is the first layer's own value, and g = σ(W x) of the layer's normed input x; relu in place of σ with that option.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, ParameterRole
from mixerzoo.testing import Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.value_residual import in_flight_bytes, sources

CASES = (
    ZooCase("satformer"),
    ZooCase("satformer", model={**LOOPED, **POST_ROPE}),
    ZooCase("satformer", {"gate": "relu"}),
)
OPTIONS = st.fixed_dictionaries({"gate": st.sampled_from(["sigmoid", "relu"])})


class SATFormer(TokenMixer):
    """The residual stream, and the first layer's value.

    Args:
        embedding: of the token [D].
        gates: step → W [G, D], for every step after the first.
        relu: in place of σ.
    """

    def __init__(self, embedding: Tensor, gates: Mapping[int, Tensor], relu: bool) -> None:
        super().__init__(embedding)
        self.gates, self.relu = gates, relu
        self.first: list[Tensor] = []

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if step == 0:
            self.first = v
            return k, v
        _, _, x = self.normed
        mixed = []
        for b, own in enumerate(v):
            logit = self.gates[step][b] @ x
            gate = logit.clamp(min=0) if self.relu else 1 / (1 + torch.exp(-logit))
            mixed.append(own + gate * self.first[b])
        return k, mixed


def begin(mixer: Mixer) -> Begin:
    state = mixer.state_dict()
    gates = {step: state[f"gates.{step}"] for step in range(1, mixer.shape.num_steps)}
    relu = mixer.config.model_dump()["gate"] == "relu"
    return lambda embedding, token: SATFormer(embedding, gates, relu)


def flops_per_token(mixer: Mixer) -> int:
    """For each head of each layer after the first the product of a row of W with x, and a weighted value added."""
    shape = mixer.shape
    return (shape.num_steps - 1) * shape.num_kv_heads * (2 * shape.hidden_size + 2 * shape.head_dim)


def plan(mixer: Mixer) -> dict[str, bool]:
    """It needs each layer's own value."""
    return {"needs_own_kv": True}


def shown(mixer: Mixer) -> tuple[str, ...]:
    """The mix of every layer but the first."""
    return ("mix_kv",) if mixer.shape.num_steps > 1 else ()


def initial(mixer: Mixer) -> dict[str, Drawn]:
    """Gates are projections as any."""
    return {name: Drawn() for name in mixer.state_dict()}


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """All are projections."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict()}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, plan=plan, shown=shown, roles=roles)
