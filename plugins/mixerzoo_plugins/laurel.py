"""LAuReL (arXiv 2411.07501): learned weights, a low-rank map and earlier activations in the residual branch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mixerzoo import (
    ConnectionMixer,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    ParameterRole,
    Site,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of LAuReL."""

    variant: Literal["rw", "lr", "pa", "rw+lr", "rw+pa", "lr+pa", "rw+lr+pa"] = Field(
        "rw+lr", description="Which terms: rw residual weights, lr low-rank map, pa previous activations."
    )
    rank: int = Field(16, ge=1, description="r of the low-rank maps (lr, and pa with previous: low_rank).")
    num_previous: int = Field(3, ge=1, description="k: how many activations pa weighs, the present one included.")
    previous: Literal["identity", "low_rank"] = Field(
        "identity", description="h of pa: the activations as they are, or a low-rank map of them."
    )
    bound: Literal["none", "softmax", "sigmoid"] = Field(
        "none", description="Keeps the weights of rw in bounds: softmax of the two, or a sigmoid of each."
    )

    @property
    def terms(self) -> tuple[str, ...]:
        """Those of the variant."""
        return tuple(self.variant.split("+"))

    @model_validator(mode="after")
    def _terms_use_their_options(self) -> Self:
        beside = f"variant {self.variant}"
        if "rw" not in self.terms:
            self.refuse_idle(beside, "choose a variant with rw", "bound")
        if "pa" not in self.terms:
            self.refuse_idle(beside, "choose a variant with pa", "num_previous", "previous")
        if "lr" not in self.terms and self.previous != "low_rank":
            remedy = "choose a variant with lr, or pa with previous: low_rank"
            self.refuse_idle(f"{beside} and previous {self.previous}", remedy, "rank")
        return self


class State(NamedTuple):
    """The stream, and its earlier values that a later sublayer reads, the latest first."""

    x: Tensor
    previous: tuple[Tensor, ...]


class LowRank(nn.Module):
    """x ↦ B·A·x.

    Args:
        size: D.
        rank: r.
    """

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, size))
        self.b = nn.Parameter(torch.empty(size, rank))

    def reset(self, generator: torch.Generator, zero: bool) -> None:
        """A with variance 1/D; B likewise with 1/r, or zero."""
        nn.init.normal_(self.a, std=1 / math.sqrt(self.a.size(1)), generator=generator)
        if zero:
            nn.init.zeros_(self.b)
        else:
            nn.init.normal_(self.b, std=1 / math.sqrt(self.b.size(1)), generator=generator)

    def forward(self, x: Tensor, scaled: Callable[[Tensor], Tensor] = lambda narrow: narrow) -> Tensor:
        """[..., D] → [..., D]; ``scaled`` is a factor of what lies between."""
        return F.linear(scaled(F.linear(x, self.a)), self.b)


class ResidualBranch(NamedTuple):
    """The residual branch of one sublayer.

    Attributes:
        weights: [2], α and β or what they are made of; None without rw.
        bound: of them, as the option.
        low_rank: B·A of the stream; None without lr.
        gamma: [as many activations as are read]; None without pa.
        previous_map: of what pa reads; None for the identity.
        num_kept: how many of the activations so far, the present one included, a later sublayer reads.
    """

    weights: Tensor | None
    bound: str
    low_rank: LowRank | None
    gamma: Tensor | None
    previous_map: LowRank | None
    num_kept: int

    def read(self, state: State) -> Tensor:
        return state.x

    def write(self, state: State, y: Tensor) -> State:
        activations = (state.x, *state.previous)
        alpha, beta = (None, None) if self.weights is None else self._bounded(self.weights).to(state.x.dtype)

        def scaled(part: Tensor) -> Tensor:
            # Each part by itself, and where it is narrow: scaled in the end, their sum would be kept for β's gradient.
            return part if beta is None else beta * part

        x = scaled(state.x)
        if self.low_rank is not None:
            x = x + self.low_rank(state.x, scaled)
        if self.gamma is not None:
            weighed = ops.weighted_sum(activations, scaled(self.gamma))
            # The map is linear: one of the sum is the sum of all.
            x = x + (weighed if self.previous_map is None else self.previous_map(weighed))
        x = x + y if alpha is None else torch.addcmul(x, alpha, y)
        return State(ops.shared(x) if self.num_kept else x, activations[: self.num_kept])

    def _bounded(self, weights: Tensor) -> Tensor:
        """α and β [2]."""
        if self.bound == "none":
            return weights
        exact = weights.to(torch.promote_types(weights.dtype, torch.float32))
        return exact.softmax(-1) if self.bound == "softmax" else exact.sigmoid()


class Laurel(ConnectionMixer[Config]):
    """The residual branch becomes a learned linear function of the stream and of its past along depth.

    x_i is the stream before sublayer i, f_i the sublayer.
    """

    name = "laurel"
    card = MixerCard(
        title="LAuReL",
        summary="Learned weights, a low-rank map and earlier activations augment each residual connection.",
        paper="arXiv 2411.07501",
        equation=(
            "x_{i+1} = α_i·f(x_i) + β_i·(x_i + B_i·A_i·x_i + Σ_{j<k} γ_{i,j}·h_i(x_{i−j}))\n"
            "rw: α, β;  lr: B·A;  pa: Σ γ·h, h the identity or low-rank"
        ),
        family="residual",
        acts_on="hidden states, after each sublayer",
        parameters="per sublayer: rw 2; lr 2·r·D; pa up to k, with previous low_rank and 2·r·D",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e (pa: min(k, 2L)·D·e)",
        neutral="bound none, at initialisation (α = β = 1, B = 0, γ = 0), bit for bit",
        neutral_settings=(Neutral(options={"bound": "none"}),),
        notes=(
            "The variants add up as in equations 5 and 6 of the paper, except that lr and pa keep separate maps, and "
            "that h is one map a sublayer, as in equation 4. Like there, j = 0 is the present stream. The paper gives "
            "no initial values; B (with previous low_rank: γ) starts at 0 while its partner does not, so that both "
            "learn. With a bound, α and β start at 1/2. Every unrolled sublayer has parameters of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.has_weights, self.has_low_rank, has_previous = (term in config.terms for term in ("rw", "lr", "pa"))
        self.num_sites = 2 * shape.num_steps
        #: k, or 0 without pa.
        self.num_previous = config.num_previous if has_previous else 0
        if self.has_weights:
            #: α and β, or what they are made of.
            self.weights = nn.ParameterList(torch.empty(2) for _ in range(self.num_sites))
        if self.has_low_rank:
            self.low_rank = nn.ModuleList(LowRank(shape.hidden_size, config.rank) for _ in range(self.num_sites))
        if has_previous:
            self.gamma = nn.ParameterList(torch.empty(self._num_read(i)) for i in range(self.num_sites))
        self.maps_previous = has_previous and config.previous == "low_rank"
        if self.maps_previous:
            self.previous_map = nn.ModuleList(LowRank(shape.hidden_size, config.rank) for _ in range(self.num_sites))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        if self.has_weights:
            for weights in self.weights:
                nn.init.constant_(weights, 1.0 if self.config.bound == "none" else 0.0)
        if self.has_low_rank:
            for low_rank in self.low_rank:
                _map(low_rank).reset(generator, zero=True)
        if self.num_previous:
            for gamma in self.gamma:
                nn.init.zeros_(gamma)
        if self.maps_previous:
            for previous_map in self.previous_map:
                _map(previous_map).reset(generator, zero=False)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # The low-rank maps; α, β and γ weigh.
        matrix = ParameterRole(decay=True, matrix=True)
        return {name: matrix for name, _ in self.named_parameters() if name.endswith((".a", ".b"))}

    def start(self, x: Tensor, context: Context) -> State:
        return State(ops.shared(x) if self.num_previous else x, ())

    def connection(self, site: Site) -> ResidualBranch:
        number = site.number
        return ResidualBranch(
            weights=self.weights[number] if self.has_weights else None,
            bound=self.config.bound,
            low_rank=_map(self.low_rank[number]) if self.has_low_rank else None,
            gamma=self.gamma[number] if self.num_previous else None,
            previous_map=_map(self.previous_map[number]) if self.maps_previous else None,
            num_kept=max(0, self._num_read(number + 1) - 1) if number + 1 < self.num_sites else 0,
        )

    def finish(self, state: State) -> Tensor:
        return state.x

    def flops_per_token(self) -> int:
        hidden, flops = self.shape.hidden_size, 0
        low_rank = 4 * hidden * self.config.rank
        for i in range(self.num_sites):
            flops += 2 * hidden * self.has_weights + (low_rank + hidden) * self.has_low_rank
            flops += 2 * hidden * self._num_read(i) + low_rank * self.maps_previous
        return flops

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        sites, number = self.shape.sites(), site.number
        depths = range(number - self._num_read(number) + 1, number + 1)
        return tuple(None if depth == 0 else sites[depth - 1] for depth in depths)

    def _num_read(self, number: int) -> int:
        """How many activations pa weighs at a sublayer: k, or as many as there are."""
        return min(self.num_previous, number + 1)


def _map(module: nn.Module) -> LowRank:
    assert isinstance(module, LowRank)
    return module


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Laurel]
