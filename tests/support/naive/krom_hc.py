"""KromHC (arXiv 2601.21579): as mHC, with res = U_1 ⊗ … ⊗ U_K over n = 2^K streams.

U_k = p·I + (1 − p)·(the swap of two), where p and 1 − p are the softmax of two logits a r + b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, ParameterRole
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, softmax
from naive.hyper_connections import MHC, Matrix, in_flight_bytes, sources

CASES = (
    ZooCase("krom_hc"),
    ZooCase("krom_hc", {"num_streams": 2, "alpha_init": 0.5}, {**LOOPED, **POST_ROPE}),
    ZooCase("krom_hc", {"num_streams": 8}),
)
OPTIONS = st.fixed_dictionaries(
    {"num_streams": st.sampled_from([2, 4, 8]), "alpha_init": st.sampled_from([0.01, 1.0])},
)


class KromHC(MHC):
    """The streams of mHC; of its parameters ``mix`` is [K, 2], the logits of identity and swap in each factor."""

    def res_of(self, own: Mapping[str, Tensor], r: Tensor) -> Matrix:
        n = len(self.streams)
        num_factors = round(math.log2(n))
        if "mix" not in own:
            # Where all streams are equal, as at the first sublayer, any matrix does; the library has none.
            return [[torch.ones(()).double() / n for _ in range(n)] for _ in range(n)]
        chances = [
            softmax([own["scale_mix"] * r[2 * k + swap] + own["mix"][k, swap] for swap in (0, 1)])
            for k in range(num_factors)
        ]
        res = []
        for i in range(n):
            row = []
            for j in range(n):
                # Bit k of a stream's number, the highest first, is its place in factor k.
                entry = torch.ones(()).double()
                for k in range(num_factors):
                    swapped = (i ^ j) >> (num_factors - 1 - k) & 1
                    entry = entry * chances[k][swapped]
                row.append(entry)
            res.append(row)
        return res


def begin(mixer: Mixer) -> Begin:
    state, eps = mixer.state_dict(), mixer.shape.norm_eps
    parameters: list[Mapping[str, Tensor]] = []
    for number in range(2 * mixer.shape.num_steps):
        prefix = f"connections.{number}."
        parameters.append({name.removeprefix(prefix): p for name, p in state.items() if name.startswith(prefix)})
    return lambda embedding, token: KromHC(embedding, parameters, state["head"], eps, 0)


def flops_per_token(mixer: Mixer) -> int:
    """As mHC, with two logits a factor; each pair has a softmax, and the product grows by a factor of 4 each time."""
    n, size = mixer.config.model_dump()["num_streams"], mixer.shape.hidden_size
    num_factors = round(math.log2(n))
    flops = 2 * n * size  # the head
    for number in range(2 * mixer.shape.num_steps):
        flops += 2 * n * size + 2 * n * size - size
        logits = 2 * n
        if number > 0:
            logits += 2 * num_factors
            flops += 2 * n * n * size
            # Maximum, difference, exp and division; then the entries of each larger product.
            flops += 4 * 2 * num_factors
            entries = 4
            for _ in range(num_factors - 1):
                entries *= 4
                flops += entries
        # The norm at the read and again at the write, W, and 1/rms, a and b of each logit; σ, and σ and its double.
        flops += 2 * 2 * n * size + 2 * logits * n * size + 3 * logits + n + 2 * n
    return flops


def shown(mixer: Mixer) -> tuple[str, ...]:
    """Every read, and the head's."""
    return "read", "finish"


def initial(mixer: Mixer) -> dict[str, float | Tensor | Drawn]:
    """b_pre = logit(1/n), b_post = 0, every factor near the identity."""
    options = mixer.config.model_dump()
    n, alpha = options["num_streams"], options["alpha_init"]
    near = torch.tensor([[0.0, -8.0]] * round(math.log2(n)))
    values: dict[str, float | Tensor | Drawn] = {"head": 0.0}
    for number in range(2 * mixer.shape.num_steps):
        own: dict[str, float | Tensor | Drawn] = {
            "norm": 1.0,
            "projection": Drawn(),
            "pre": -math.log(n - 1),
            "post": 0.0,
        }
        own |= {"scale_pre": alpha, "scale_post": alpha}
        if number > 0:
            own |= {"mix": near, "scale_mix": alpha}
        values |= {f"connections.{number}.{name}": value for name, value in own.items()}
    return values


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """As mHC."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict() if name.endswith("projection")}


REFUSED = (Case(SMALL, {"num_streams": 6}),)
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, refused=REFUSED, shown=shown, roles=roles
)
