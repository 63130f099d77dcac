"""LAuReL (arXiv 2411.07501), equations 2 to 6: with x_i the stream before sublayer i and f_i the sublayer,

x_{i+1} = α_i f_i + β_i (x_i + B_i A_i x_i + Σ_j γ_{i,j} h_i(x_{i−j})),  0 ≤ j < k, i − j ≥ 0,

where α = β = 1 without rw, the second term is there with lr and the third with pa. h_i is the identity or B'_i A'_i.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, softmax

VARIANTS = ("rw", "lr", "pa", "rw+lr", "rw+pa", "lr+pa", "rw+lr+pa")
CASES = (
    ZooCase("laurel"),
    ZooCase("laurel", {"variant": "rw", "bound": "softmax"}, POST_ROPE),
    ZooCase("laurel", {"variant": "lr", "rank": 2}),
    ZooCase("laurel", {"variant": "pa", "num_previous": 4}),
    ZooCase("laurel", {"variant": "rw+lr+pa", "previous": "low_rank", "rank": 3, "bound": "sigmoid"}, LOOPED),
)


def options_of(variant: str) -> st.SearchStrategy[dict[str, Any]]:
    """Those that mean something to the terms of a variant."""
    drawn: dict[str, st.SearchStrategy[Any]] = {"variant": st.just(variant)}
    if "rw" in variant:
        drawn["bound"] = st.sampled_from(["none", "softmax", "sigmoid"])
    if "lr" in variant:
        drawn["rank"] = st.integers(1, 4)
    if "pa" not in variant:
        return st.fixed_dictionaries(drawn)
    drawn["num_previous"] = st.integers(1, 7)
    mapped = {"previous": st.just("low_rank"), "rank": st.integers(1, 4)}
    return st.fixed_dictionaries(drawn) | st.fixed_dictionaries({**drawn, **mapped})


OPTIONS = st.one_of(*map(options_of, VARIANTS))
REFUSED = tuple(
    Case(SMALL, options)
    for options in (
        {"variant": "rw", "rank": 2},
        {"variant": "rw+pa", "rank": 2},
        {"variant": "rw+lr", "num_previous": 2},
        {"variant": "lr", "previous": "low_rank"},
        {"variant": "lr+pa", "bound": "sigmoid"},
    )
)


class Laurel(TokenMixer):
    """The stream with its past along depth.

    Args:
        embedding: of the token [D].
        options: of the mixer.
        state: its parameters.
    """

    def __init__(self, embedding: Tensor, options: dict[str, object], state: dict[str, Tensor]) -> None:
        super().__init__(embedding)
        self.options, self.state = options, state
        self.streams = [embedding]

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        i, state = len(self.streams) - 1, self.state
        x = self.streams[i]
        linear = x
        if f"low_rank.{i}.a" in state:
            linear = linear + state[f"low_rank.{i}.b"] @ (state[f"low_rank.{i}.a"] @ x)
        if f"gamma.{i}" in state:
            for j, gamma in enumerate(state[f"gamma.{i}"]):
                earlier = self.streams[i - j]
                if self.options["previous"] == "low_rank":
                    earlier = state[f"previous_map.{i}.b"] @ (state[f"previous_map.{i}.a"] @ earlier)
                linear = linear + gamma * earlier
        alpha, beta = self.weights(i)
        self.x = alpha * y + beta * linear
        self.streams.append(self.x)

    def weights(self, i: int) -> tuple[Tensor, Tensor]:
        """α_i and β_i."""
        if f"weights.{i}" not in self.state:
            return torch.ones(()), torch.ones(())
        first, second = self.state[f"weights.{i}"]
        if self.options["bound"] == "softmax":
            first, second = softmax([first, second])
        if self.options["bound"] == "sigmoid":
            first, second = 1 / (1 + torch.exp(-first)), 1 / (1 + torch.exp(-second))
        return first, second


def begin(mixer: Mixer) -> Begin:
    options, state = mixer.config.model_dump(), mixer.state_dict()
    return lambda embedding, token: Laurel(embedding, options, state)


def num_weighed(mixer: Mixer, i: int) -> int:
    """How many of x_i, x_{i−1}, … sublayer i weighs."""
    options = mixer.config.model_dump()
    return len([j for j in range(options["num_previous"]) if i - j >= 0]) if "pa" in options["variant"] else 0


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """Before sublayer i: x_i, and those x_{i−j} that it or a later sublayer weighs."""
    most, num_sublayers = 1, 2 * mixer.shape.num_steps
    for i in range(num_sublayers):
        weighed = {m - j for m in range(i, num_sublayers) for j in range(num_weighed(mixer, m)) if m - j <= i}
        most = max(most, len({i} | weighed))
    return most * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """Beyond y + x: rw two products a channel; lr A, B and a sum; pa a product and a sum each, and its A and B."""
    options, size = mixer.config.model_dump(), mixer.shape.hidden_size
    maps = 2 * options["rank"] * size + 2 * size * options["rank"]
    flops = 0
    for i in range(2 * mixer.shape.num_steps):
        if "rw" in options["variant"]:
            flops += 2 * size
        if "lr" in options["variant"]:
            flops += maps + size
        if "pa" in options["variant"]:
            flops += 2 * size * num_weighed(mixer, i) + (maps if options["previous"] == "low_rank" else 0)
    return flops


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """x_i is what sublayer i − 1 left, x_0 the embedding; the earliest first."""
    sites = mixer.shape.sites()
    i = sites.index(site)
    left_by = [i - j - 1 for j in range(num_weighed(mixer, i))]
    return tuple(None if before < 0 else sites[before] for before in reversed(left_by))


def initial(mixer: Mixer) -> dict[str, float | Drawn]:
    """α = β = 1 (bounded: 1/2), B = 0, γ = 0; A keeps variance, as do both maps of previous low_rank."""
    options = mixer.config.model_dump()
    values: dict[str, float | Drawn] = {}
    narrow, wide = Drawn(1 / math.sqrt(mixer.shape.hidden_size)), Drawn(1 / math.sqrt(options["rank"]))
    sublayers = range(2 * mixer.shape.num_steps)
    if "rw" in options["variant"]:
        values |= {f"weights.{i}": 1.0 if options["bound"] == "none" else 0.0 for i in sublayers}
    if "lr" in options["variant"]:
        values |= {f"low_rank.{i}.b": 0.0 for i in sublayers} | {f"low_rank.{i}.a": narrow for i in sublayers}
    if "pa" in options["variant"]:
        values |= {f"gamma.{i}": 0.0 for i in sublayers}
        if options["previous"] == "low_rank":
            values |= {f"previous_map.{i}.a": narrow for i in sublayers}
            values |= {f"previous_map.{i}.b": wide for i in sublayers}
    return values


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """A and B are maps."""
    return {name: ParameterRole(decay=True, matrix=True) for name in mixer.state_dict() if name.split(".")[-1] in "ab"}


#: More activations than there are.
LONG = (Case(SMALL, {"variant": "pa", "num_previous": 99}),)
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, cases=LONG, refused=REFUSED, roles=roles
)
