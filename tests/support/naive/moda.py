"""MoDA (arXiv 2603.15619): the softmax of layer l runs over the sequence and over its own token's earlier entries.

Every earlier layer j gives the keys and values of its attention as it reads them itself, and those of its MLP:
(k, v) = W_j·x̂ with x̂ = x / √(mean(x²) + ε) of the MLP's input; each key head is normed with a gain and gets the
token's RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Drawn, Reference
from mixerzoo.testing.reference import Begin, Heads, Rotation, TokenMixer, rms_norm

CASES = (
    ZooCase("moda"),
    ZooCase("moda", model=POST_ROPE),
    ZooCase("moda", {"mlp": False}),
    ZooCase("moda", model=LOOPED),
)
OPTIONS = st.fixed_dictionaries({"mlp": st.booleans()})


class Moda(TokenMixer):
    """The residual stream, and the entries that the sublayers so far have given.

    Args:
        embedding: of the token [D].
        projections: step → W [2·G·d, D], G keys and then G values.
        gains: step → gain of the key norm [d].
        eps: ε.
    """

    def __init__(
        self, embedding: Tensor, projections: Mapping[int, Tensor], gains: Mapping[int, Tensor], eps: float
    ) -> None:
        super().__init__(embedding)
        self.projections, self.gains, self.eps = projections, gains, eps
        self.attention: list[tuple[list[Tensor], list[Tensor]]] = []
        self.mlp: list[tuple[list[Tensor], list[Tensor]]] = []

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        self.attention.append((k, v))
        return k, v

    def depth_kv(self, step: int, layer: int, q: list[Tensor], rotate: Rotation) -> tuple[Heads, Heads]:
        keys = [k for k, _ in self.attention[:step]] + [[rotate(head) for head in k] for k, _ in self.mlp]
        values = [v for _, v in self.attention[:step]] + [v for _, v in self.mlp]
        return keys, values

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        if branch == "mlp" and step in self.projections:
            both = self.projections[step] @ rms_norm(self.x, torch.ones_like(self.x), self.eps)
            heads = list(both.split(len(self.gains[step])))
            k, v = heads[: len(heads) // 2], heads[len(heads) // 2 :]
            self.mlp.append(([rms_norm(head, self.gains[step], self.eps) for head in k], v))
        super().write(step, layer, branch, y)


def begin(mixer: Mixer) -> Begin:
    state, eps = mixer.state_dict(), mixer.shape.norm_eps
    steps = range(mixer.shape.num_steps - 1) if mixer.config.model_dump()["mlp"] else ()
    projections = {step: state[f"projections.{step}.weight"] for step in steps}
    gains = {step: state[f"projections.{step}.key_gain"] for step in steps}
    return lambda embedding, token: Moda(embedding, projections, gains, eps)


def entries_before(mixer: Mixer, step: int) -> int:
    """One of each earlier attention, and one of each earlier MLP where they give any."""
    return step * (2 if mixer.config.model_dump()["mlp"] else 1)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and at the last layer the entries of all others."""
    shape = mixer.shape
    kept = 2 * shape.num_kv_heads * shape.head_dim * entries_before(mixer, shape.num_steps - 1)
    return (shape.hidden_size + kept) * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    shape = mixer.shape
    width = shape.num_kv_heads * shape.head_dim
    flops = 0
    for step in range(shape.num_steps):
        # A score and a weighted value for each query head and entry.
        flops += 2 * 2 * shape.num_heads * shape.head_dim * entries_before(mixer, step)
        if mixer.config.model_dump()["mlp"] and step < shape.num_steps - 1:
            # The norm of the input, the projection of keys and values, the norm of the keys with its gain.
            flops += 3 * shape.hidden_size + 2 * 2 * shape.hidden_size * width + 4 * width
            # RoPE, two multiplications and an addition: an entry has one position, whoever reads it.
            flops += 3 * width
    return flops


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """Every sublayer of earlier layers; without entries of MLPs the attentions."""
    if site.branch == "mlp":
        return ()
    branches = ("attention", "mlp") if mixer.config.model_dump()["mlp"] else ("attention",)
    order = mixer.shape.order
    return tuple(Site(step, order[step], branch) for step in range(site.step) for branch in branches)


def initial(mixer: Mixer) -> dict[str, float | Drawn]:
    return {name: 1.0 if name.endswith("key_gain") else Drawn() for name in mixer.state_dict()}


def plan(mixer: Mixer) -> dict[str, object]:
    """It needs each layer's own keys and values, and one layer has none before it to attend to."""
    hooks = {"mix_kv", "depth_kv"} if mixer.shape.num_steps > 1 else {"mix_kv"}
    return {"needs_own_kv": True, "hooks": frozenset(hooks)}


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """Projections of keys and values; the gains are those of norms."""
    return {n: ParameterRole(decay=True, matrix=True) for n in mixer.state_dict() if n.endswith("weight")}


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, plan=plan, roles=roles)
