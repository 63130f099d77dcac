"""Value residual, ResFormer (arXiv 2410.17897): v_l ← λ1_l·v_0 + λ2_l·v_l for every layer l after the first.

v_0 is the first layer's own value. With the gate, key/value head b weighs v_0 with λ1_l·2σ(θ_{l,b}) instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (
    ZooCase("value_residual"),
    ZooCase("value_residual", {"gate": True}, LOOPED),
    ZooCase("value_residual", {"weights": "fixed", "first": 2.0, "own": 0.7}, POST_ROPE),
    ZooCase("value_residual", {"weights": "fixed", "gate": True}),
)
OPTIONS = st.fixed_dictionaries(
    {
        "weights": st.sampled_from(["fixed", "learned"]),
        "first": st.sampled_from([0.5, 2.0, -0.25]),
        "own": st.sampled_from([0.5, 1.0]),
        "gate": st.booleans(),
    }
)


class ValueResidual(TokenMixer):
    """The residual stream, and the first layer's value.

    Args:
        embedding: of the token [D].
        weights: step → (λ1, λ2), for every step after the first.
        gates: step → θ [G], where there is a gate.
    """

    def __init__(
        self, embedding: Tensor, weights: Mapping[int, tuple[float, float]], gates: Mapping[int, Tensor]
    ) -> None:
        super().__init__(embedding)
        self.weights, self.gates = weights, gates
        self.first: list[Tensor] = []

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if step == 0:
            self.first = v
            return k, v
        mixed = []
        for b, own in enumerate(v):
            weight_of_first, weight_of_own = self.weights[step]
            if step in self.gates:
                weight_of_first = weight_of_first * 2 / (1 + torch.exp(-self.gates[step][b]))
            mixed.append(weight_of_first * self.first[b] + weight_of_own * own)
        return k, mixed


def begin(mixer: Mixer) -> Begin:
    options, state = mixer.config.model_dump(), mixer.state_dict()
    weights, gates = {}, {}
    for step in range(1, mixer.shape.num_steps):
        weights[step] = options["first"], options["own"]
        if options["weights"] == "learned":
            weights[step] = tuple(state[f"weights.{step}"])
        if options["gate"]:
            gates[step] = state[f"gates.{step}"]
    return lambda embedding, token: ValueResidual(embedding, weights, gates)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and the first value where a later layer reads it."""
    shape = mixer.shape
    kept = 0 if shape.num_steps == 1 else shape.num_kv_heads * shape.head_dim
    return (shape.hidden_size + kept) * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """Two multiplications and an addition for each number of a value; one more multiplication by the gate."""
    shape = mixer.shape
    each = 3 + mixer.config.model_dump()["gate"]
    return each * shape.num_kv_heads * shape.head_dim * (shape.num_steps - 1)


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The first layer, and the layer itself."""
    if site.step == 0 or site.branch == "mlp":
        return ()
    return Site(0, mixer.shape.order[0], "attention"), site


def plan(mixer: Mixer) -> dict[str, bool]:
    """It needs each layer's own value; a gate has a parameter for each head, of all heads."""
    return {"needs_own_kv": True, "heads_apart": not mixer.config.model_dump()["gate"]}


def shown(mixer: Mixer) -> tuple[str, ...]:
    """The mix of every layer but the first."""
    return ("mix_kv",) if mixer.shape.num_steps > 1 else ()


def initial(mixer: Mixer) -> dict[str, float | Tensor]:
    options = mixer.config.model_dump()
    found: dict[str, float | Tensor] = {}
    for step in range(1, mixer.shape.num_steps):
        if options["weights"] == "learned":
            found[f"weights.{step}"] = torch.tensor([options["first"], options["own"]])
        if options["gate"]:
            found[f"gates.{step}"] = 0.0
    return found


REFUSED = (Case(SMALL, {"weights": "fixed", "first": 0.0, "gate": True}),)
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, refused=REFUSED, plan=plan, shown=shown
)
