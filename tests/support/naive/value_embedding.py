"""Value embeddings (nanochat): v_b ← v_b + g_b·E_l[token]_b in every p-th layer l, the last among them.

g = 2σ(W_l·x̂[:c]) per key/value head b, with x̂ = x / √(mean(x²) + ε) of what the attention reads; 1 without gate.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, rms_norm

CASES = (
    ZooCase("value_embedding"),
    ZooCase("value_embedding", {"every": 3, "gate_channels": 5, "initial": "normal"}, POST_ROPE),
    ZooCase("value_embedding", {"every": 1, "gate": False}, LOOPED),
)
_TABLES = {"every": st.integers(1, 4), "initial": st.sampled_from(["zero", "normal"])}
OPTIONS = st.fixed_dictionaries({**_TABLES, "gate": st.just(False)}) | st.fixed_dictionaries(
    {**_TABLES, "gate": st.just(True), "gate_channels": st.sampled_from([1, 3, 32])}
)
REFUSED = (Case(SMALL, {"gate": False, "gate_channels": 3}),)


class ValueEmbedding(TokenMixer):
    """The residual stream, and what is known of the token.

    Args:
        embedding: of the token [D].
        token: its id.
        tables: step → E [V, G·d].
        gates: step → W [G, c], where there is a gate.
        eps: ε.
    """

    def __init__(
        self, embedding: Tensor, token: int, tables: Mapping[int, Tensor], gates: Mapping[int, Tensor], eps: float
    ) -> None:
        super().__init__(embedding)
        self.token, self.tables, self.gates, self.eps = token, tables, gates, eps

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if step not in self.tables:
            return k, v
        row = self.tables[step][self.token]
        normed = rms_norm(self.x, torch.ones_like(self.x), self.eps)
        mixed = []
        for b, own in enumerate(v):
            added = row[b * len(own) : (b + 1) * len(own)]
            if step in self.gates:
                weights = self.gates[step][b]
                added = 2 / (1 + torch.exp(-(weights @ normed[: len(weights)]))) * added
            mixed.append(own + added)
        return k, mixed


def steps_with_table(mixer: Mixer) -> list[int]:
    last = mixer.shape.num_steps - 1
    return [step for step in range(last + 1) if (last - step) % mixer.config.model_dump()["every"] == 0]


def begin(mixer: Mixer) -> Begin:
    state, eps = mixer.state_dict(), mixer.shape.norm_eps
    steps = steps_with_table(mixer)
    tables = {step: state[f"tables.{step}"] for step in steps}
    gates = {step: state[f"gates.{step}"] for step in steps if mixer.config.model_dump()["gate"]}
    return lambda embedding, token: ValueEmbedding(embedding, token, tables, gates, eps)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and the token's id of 64 bits."""
    return mixer.shape.hidden_size * dtype.itemsize + 8


def flops_per_token(mixer: Mixer) -> int:
    """An addition for each number of a value; and for the gate the norm, a matrix, and a multiplication each."""
    shape, options = mixer.shape, mixer.config.model_dump()
    width = shape.num_kv_heads * shape.head_dim
    flops = width
    if options["gate"]:
        channels = min(options["gate_channels"], shape.hidden_size)
        flops += 3 * shape.hidden_size + 2 * shape.num_kv_heads * channels + width
    return flops * len(steps_with_table(mixer))


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """No sublayer's output is read."""
    return ()


def initial(mixer: Mixer) -> dict[str, float | Drawn]:
    options = mixer.config.model_dump()
    found: dict[str, float | Drawn] = {}
    for step in steps_with_table(mixer):
        found[f"tables.{step}"] = 0.0 if options["initial"] == "zero" else Drawn()
        if options["gate"]:
            found[f"gates.{step}"] = 0.0
    return found


def plan(mixer: Mixer) -> dict[str, bool]:
    """It needs each layer's own value."""
    return {"needs_own_kv": True}


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """Tables and projections."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict()}


REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, refused=REFUSED, plan=plan, roles=roles
)
