"""Scaled residual: h ← α⊙h + β⊙y after every sublayer, or with a highway gate (arXiv 1505.00387)
h ← g⊙y + (1 − g)⊙h, g = σ(W[h; y] + b)."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, SMALL, ZooCase
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer
from naive.residual import in_flight_bytes

CASES = (
    ZooCase("scaled_residual"),
    ZooCase("scaled_residual", {"weights": "vector"}, LOOPED),
    ZooCase("scaled_residual", {"gate": "highway"}),
    ZooCase("scaled_residual", {"gate": "highway", "weights": "vector", "gate_bias": -1.0}, LOOPED),
)
_WEIGHTS = {"weights": st.sampled_from(["scalar", "vector"])}
OPTIONS = st.fixed_dictionaries({**_WEIGHTS, "gate": st.just("none")}) | st.fixed_dictionaries(
    {**_WEIGHTS, "gate": st.just("highway"), "gate_bias": st.sampled_from([None, -2.0, 0.0])}
)
REFUSED = (Case(SMALL, {"gate_bias": 0.0}),)


class Scaled(TokenMixer):
    """α⊙h + β⊙y.

    Args:
        embedding: of the token [D].
        alpha: of each sublayer [1] or [D].
        beta: likewise.
    """

    def __init__(self, embedding: Tensor, alpha: list[Tensor], beta: list[Tensor]) -> None:
        super().__init__(embedding)
        self.alpha, self.beta, self.done = alpha, beta, 0

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.alpha[self.done] * self.x + self.beta[self.done] * y
        self.done += 1


class Highway(TokenMixer):
    """g⊙y + (1 − g)⊙h.

    Args:
        embedding: of the token [D].
        weights: W of each sublayer [1 or D, 2·D].
        biases: b of each sublayer [1 or D].
    """

    def __init__(self, embedding: Tensor, weights: list[Tensor], biases: list[Tensor]) -> None:
        super().__init__(embedding)
        self.weights, self.biases, self.done = weights, biases, 0

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        logits = self.weights[self.done] @ torch.cat([self.x, y]) + self.biases[self.done]
        gate = 1 / (1 + torch.exp(-logits))
        self.x = gate * y + (1 - gate) * self.x
        self.done += 1


def begin(mixer: Mixer) -> Begin:
    state, num_sublayers = mixer.state_dict(), 2 * mixer.shape.num_steps
    if mixer.config.model_dump()["gate"] == "none":
        alpha, beta = ([state[f"{name}.{i}"] for i in range(num_sublayers)] for name in ("alpha", "beta"))
        return lambda embedding, token: Scaled(embedding, alpha, beta)
    weights = [state[f"gates.{i}.weight"] for i in range(num_sublayers)]
    biases = [state.get(f"gates.{i}.bias", torch.zeros(len(weights[i])).double()) for i in range(num_sublayers)]
    return lambda embedding, token: Highway(embedding, weights, biases)


def flops_per_token(mixer: Mixer) -> int:
    """Two products a channel beyond the addition; the gate's row or rows of W, its σ and 1 − g."""
    options, size = mixer.config.model_dump(), mixer.shape.hidden_size
    flops = 2 * size
    if options["gate"] == "highway":
        rows = size if options["weights"] == "vector" else 1
        flops += rows * (2 * 2 * size) + 2 * rows
    return 2 * mixer.shape.num_steps * flops


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    return ()


def initial(mixer: Mixer) -> dict[str, float | Drawn]:
    """α = β = 1; gates as projections, their bias as the option says."""
    options = mixer.config.model_dump()
    sublayers = range(2 * mixer.shape.num_steps)
    if options["gate"] == "none":
        return {f"{name}.{i}": 1.0 for name in ("alpha", "beta") for i in sublayers}
    found: dict[str, float | Drawn] = {f"gates.{i}.weight": Drawn() for i in sublayers}
    if options["gate_bias"] is not None:
        found |= {f"gates.{i}.bias": options["gate_bias"] for i in sublayers}
    return found


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """A gate's W is a projection; α, β and biases are none."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict() if name.endswith("weight")}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, refused=REFUSED, roles=roles)
