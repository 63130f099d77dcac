"""MUDDFormer (arXiv 2502.12170): queries, keys, values and the residual of a block each read a mix of all earlier
block outputs, with weights made from the token's present state."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixingWeights,
    Neutral,
    ParameterRole,
    Plan,
    Site,
    hookimpl,
    ops,
)

#: Query, key, value, residual.
WAYS = 4


class Config(MixerConfig):
    """Options of MUDDFormer."""

    last_expansion: int = Field(
        4, ge=1, description="Times by which the hidden size of the last weight MLP, which has one way, is larger."
    )


class State(NamedTuple):
    """Between two calls.

    Attributes:
        x: the stream [B, T, D]: inside a block with the attention's output, else the last block's output.
        outputs: X_0 … X_i, the embedding and the outputs of the blocks so far.
        weights: of the next mixes, [B, T, ways, i + 1]; None where there is nothing to mix.
    """

    x: Tensor
    outputs: tuple[Tensor, ...]
    weights: Tensor | None


class WeightMLP(nn.Module):
    """Weights over sources, by way: W2·GELU(W1·RMSNorm(x)) + b.

    Args:
        size: D.
        ways: how many mixes.
        num_sources: over how many sources each.
        expansion: hidden size over the number of weights.
        eps: of the norm, which has no gain.
    """

    def __init__(self, size: int, ways: int, num_sources: int, expansion: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        hidden = expansion * ways * num_sources
        self.w1 = nn.Parameter(torch.empty(hidden, size))
        self.w2 = nn.Parameter(torch.empty(ways * num_sources, hidden))
        self.bias = nn.Parameter(torch.empty(ways, num_sources))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, ways, sources] from x [B, T, D]."""
        hidden = ops.normed_product(x, self.w1, self.eps).to(x.dtype)
        dynamic = F.linear(F.gelu(hidden), self.w2)
        weights: Tensor = dynamic.unflatten(-1, self.bias.shape).to(x.dtype) + self.bias.to(x.dtype)
        return weights

    def flops(self) -> int:
        """Per token."""
        return 2 * (self.w1.numel() + self.w2.numel()) + 3 * self.w1.size(1) + self.w1.size(0) + self.bias.numel()


class Mudd(Mixer[Config]):
    """Multiway dynamic dense connections.

    X_0 is the embedding and X_i the output of block i, residual included. After block i, its output makes the
    weights of four mixes over X_0 … X_i; after the last block of one.
    """

    name = "mudd"
    card = MixerCard(
        title="MUDDFormer",
        summary="Queries, keys, values and residual each read a token-dependent mix of all earlier block outputs.",
        paper="arXiv 2502.12170",
        equation=(
            "X_{i+1} = block(x^q, x^k, x^v; x^r),  residual taken from x^r\n"
            "x^c = Σ_{j ≤ i} (b^c_j + dw^c_j)·X_j  for c in q, k, v, r\n"
            "dw = W2·GELU(W1·RMSNorm(X_i))"
        ),
        family="depth-weighted",
        acts_on="hidden states, before each attention (q, k, v and residual apart) and before the final norm",
        parameters="Σ_{i=1..L} (h_i·D + h_i·n_i + n_i), n_i = 4·(i+1), h_i = n_i; last n = L+1, h = last_expansion·n",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="max((L+1)·(D + 1), L·(D + 4))·e",
        neutral="at initialisation (W2 = 0, b picks the current block), bit for bit",
        neutral_settings=(Neutral(),),
        notes=(
            "As in the authors' code: the first block reads the embedding, the norm in front of the weights has no "
            "gain, W1 and W2 have no bias, the hidden size is the number of weights, after the last block there is "
            "one way, with a hidden size four times as large. The code's rounding of hidden sizes to multiples of "
            "64, its separate norms for q, k and v and its wider MLPs in deep layers are left out: the decoder is "
            "the same for all mixers, and its input norm is applied to each. W1 is drawn like the decoder's "
            "weights. In a looped decoder i counts unrolled blocks, so every loop has weights of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        last = shape.num_steps
        #: number i of finished blocks → what weighs X_0 … X_i.
        self.mixes = nn.ModuleDict(
            {
                str(i): WeightMLP(
                    size=shape.hidden_size,
                    ways=1 if i == last else WAYS,
                    num_sources=i + 1,
                    expansion=config.last_expansion if i == last else 1,
                    eps=shape.norm_eps,
                )
                for i in range(1, last + 1)
            }
        )

    def plan(self) -> Plan:
        return replace(super().plan(), separate_inputs=True)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for mix in self.mixes.values():
            assert isinstance(mix, WeightMLP)
            nn.init.normal_(mix.w1, std=std, generator=generator)
            nn.init.zeros_(mix.w2)
            nn.init.zeros_(mix.bias)
            nn.init.ones_(mix.bias[:, -1])

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # As where modded-nanogpt uses the method (its pull request 259): the two projections, not the bias.
        return {name: ParameterRole(decay=True) for name, _ in self.named_parameters() if not name.endswith("bias")}

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, (ops.shared(x),), None)

    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        if site.branch == "mlp" or state.weights is None:
            return state.x
        q, k, v, _ = state.weights.unbind(-2)
        return AttentionInputs(*ops.weighted_sums(state.outputs, (q, k, v)))

    def write(self, state: State, site: Site, y: Tensor) -> State:
        if site.branch == "attention":
            x = state.x if state.weights is None else ops.weighted_sum(state.outputs, state.weights[..., -1, :])
            return State(x + y, state.outputs, None)
        x = state.x + y
        return State(x, (*state.outputs, ops.shared(x)), self.mixes[str(site.step + 1)](x))

    def finish(self, state: State) -> Tensor:
        assert state.weights is not None
        return ops.weighted_sum(state.outputs, state.weights[..., 0, :])

    def mixing_weights(self, state: State, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        if site.branch == "mlp" or state.weights is None:
            return None
        return MixingWeights(state.weights[..., 0, :], state.outputs)

    def final_weights(self, state: State) -> MixingWeights | None:
        assert state.weights is not None
        return MixingWeights(state.weights[..., 0, :], state.outputs, (None, *self.shape.sites()[1::2]))

    def flops_per_token(self) -> int:
        flops = 0
        for mix in self.mixes.values():
            assert isinstance(mix, WeightMLP)
            flops += mix.flops() + 2 * self.shape.hidden_size * mix.bias.numel()
        return flops

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or site.step == 0:
            return ()
        return (None, *self.shape.sites()[1 : 2 * site.step : 2])


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Mudd]
