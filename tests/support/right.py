"""Mixers that are right and unusual: the conformance kit must not blame them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    ParameterRole,
    Plan,
    Site,
    Tail,
)
from mixerzoo.errors import MixerError

_CARD = MixerCard(
    title="An unusual mixer",
    summary="A right one, of a kind that is rare.",
    paper="",
    equation="x ← x + f(norm(x)), and what the class says",
    family="residual",
    acts_on="hidden states",
    parameters="0",
    kv_bytes="2·L·G·d·e",
    in_flight_bytes="D·e",
)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Stream(Mixer):
    """The plain residual stream x [B, T, D], to derive from."""

    card = _CARD

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y

    def finish(self, state: Tensor) -> Tensor:
        return state


class HeadGates(AttentionMixer):
    """Each key/value head is scaled by a gate of its own, 2σ(W·x + b), of the normed input; weights of all layers."""

    name = "head_gates"
    card = replace(
        _CARD,
        family="attention",
        acts_on="value, before the cache write",
        parameters="L·G·(D+1)",
        neutral="at initialisation (W = 0, b = 0), bit for bit",
        neutral_settings=(Neutral(),),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gates = nn.ModuleList(nn.Linear(shape.hidden_size, shape.num_kv_heads) for _ in shape.order)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {f"gates.{step}.weight": ParameterRole(decay=True) for step in range(self.shape.num_steps)}

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=True)

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        assert isinstance(call.x, Tensor)
        gate = 2 * _wide(self.gates[call.site.step](call.x)).sigmoid()
        return state, call.k, gate.to(call.v.dtype).transpose(1, 2)[..., None] * call.v

    def flops_per_token(self) -> int:
        shape = self.shape
        return shape.num_steps * shape.num_kv_heads * (2 * shape.hidden_size + shape.head_dim + 3)


class Biased(Stream):
    """Every sublayer's output gets a bias, which starts at zero."""

    name = "biased"
    card = replace(_CARD, parameters="2·L·D", neutral="at initialisation, bit for bit", neutral_settings=(Neutral(),))

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.bias = nn.Parameter(torch.empty(2 * shape.num_steps, shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.bias)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (y + self.bias[site.number])

    def flops_per_token(self) -> int:
        return 2 * self.shape.num_steps * self.shape.hidden_size


class TwoSources(NamedTuple):
    """The stream and the embedding, [B, T, D] each."""

    x: Tensor
    embedding: Tensor


class NormedSource(Mixer):
    """What is read is the stream and a weighted, normed embedding; the norm has an epsilon and runs in float32."""

    name = "normed_source"
    card = replace(
        _CARD,
        parameters="2·L",
        in_flight_bytes="2·D·e",
        neutral="at initialisation (w = 0), bit for bit",
        neutral_settings=(Neutral(),),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weight = nn.Parameter(torch.empty(2 * shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.weight)

    def start(self, x: Tensor, context: Context) -> TwoSources:
        wide = _wide(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.shape.norm_eps)
        return TwoSources(x, (wide * scale).to(x.dtype))

    def read(self, state: TwoSources, site: Site) -> Tensor:
        return state.x + self.weight[site.number] * state.embedding

    def write(self, state: TwoSources, site: Site, y: Tensor) -> TwoSources:
        return state._replace(x=state.x + y)

    def finish(self, state: TwoSources) -> Tensor:
        return state.x

    def flops_per_token(self) -> int:
        return (4 * self.shape.num_steps + 3) * self.shape.hidden_size

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return (None,)


class WithLinear(Stream):
    """The stream goes through a linear layer with a bias at its end; the matrix decays, the bias does not."""

    name = "with_linear"
    card = replace(_CARD, parameters="D² + D")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.linear = nn.Linear(shape.hidden_size, shape.hidden_size)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.linear.weight, std=std, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"linear.weight": ParameterRole(decay=True)}

    def finish(self, state: Tensor) -> Tensor:
        added: Tensor = self.linear(state)
        return state + added

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size * (self.shape.hidden_size + 1)


class SharedWeights(Stream):
    """All sites share one vector of weights, and attention and MLP one more number each."""

    name = "shared_weights"
    card = replace(_CARD, parameters="D + 2", neutral="at initialisation, bit for bit", neutral_settings=(Neutral(),))

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.channels = nn.Parameter(torch.empty(shape.hidden_size))
        self.branches = nn.Parameter(torch.empty(2))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (self.branches[int(site.branch == "mlp")] * self.channels) * y

    def flops_per_token(self) -> int:
        return 4 * self.shape.num_steps * self.shape.hidden_size


class Rate(MixerConfig):
    """Options."""

    rate: float = Field(0.5, gt=0, le=1, description="Share of the new output in the running mean.")


class WithoutParameters(Mixer[Rate]):
    """A running mean over depth in place of a sum; nothing is learned, and no option makes it plain."""

    name = "without_parameters"
    card = replace(_CARD, equation="x ← (1 − rate)·x + rate·f(norm(x))")

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        rate = self.config.rate
        return (1 - rate) * state + rate * y

    def finish(self, state: Tensor) -> Tensor:
        return state

    def flops_per_token(self) -> int:
        return 4 * self.shape.num_steps * self.shape.hidden_size


class ReadsIds(Stream):
    """Adds a vector of the token's id at the embedding, from a table of its own; without ids it says that it cannot."""

    name = "reads_ids"
    card = replace(_CARD, parameters="V·D", notes="Tables decay, as the decoder's own embedding does.")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.table = nn.Parameter(torch.empty(shape.vocab_size, shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.table, std=std, generator=generator)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"table": ParameterRole(decay=True, lr_factor=0.5)}

    def start(self, x: Tensor, context: Context) -> Tensor:
        if context.tokens is None:
            raise MixerError("reads_ids looks tokens up by their ids, but the decoder was given embeddings")
        return x + F.embedding(context.tokens, self.table).to(x.dtype)

    def flops_per_token(self) -> int:
        return self.shape.hidden_size


class LongTail(Stream):
    """A learned convolution of the last two channels of the embedding over three tokens back, through a tail."""

    name = "long_tail"
    card = replace(
        _CARD,
        parameters="3",
        acts_on="the embedding",
        neutral="at initialisation (w = 0), bit for bit",
        neutral_settings=(Neutral(),),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weight = nn.Parameter(torch.empty(3))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.weight)

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(3, 2))

    def tail(self, x: Tensor, context: Context) -> Tensor:
        return x[..., -2:]

    def start(self, x: Tensor, context: Context) -> Tensor:
        added = sum(self.weight[i] * vector for i, vector in enumerate(context.earlier))
        assert isinstance(added, Tensor)
        return x + F.pad(added, (x.size(-1) - 2, 0)).to(x.dtype)

    def flops_per_token(self) -> int:
        return 12 + self.shape.hidden_size


class Nothing(Stream):
    """Above the first layer every step attends to what the first one stored: most of them store nothing themselves."""

    name = "nothing"
    card = replace(_CARD, family="cache", kv_bytes="2·G·d·e")

    def plan(self) -> Plan:
        first = (0,) * self.shape.num_steps
        return Plan.borrowing(self.shape.order, first, first)


class Inner(NamedTuple):
    """A number a token [B, T, 1], and what nobody has yet."""

    size: Tensor
    other: Tensor | None


class Mode(MixerConfig):
    """Options."""

    mode: Literal["damped", "plain"] = Field("damped", description="damped: large outputs count less; plain: alike.")


class Nested(Mixer[Mode]):
    """Outputs are damped by one number a token, which grows with depth and lies two tuples deep in the state."""

    name = "nested"
    card = replace(
        _CARD,
        in_flight_bytes="D·e + e",
        neutral="mode: plain, bit for bit",
        neutral_settings=(Neutral(options={"mode": "plain"}),),
    )

    def start(self, x: Tensor, context: Context) -> Any:
        return x, (Inner(torch.ones_like(x[..., :1]), None), ())

    def read(self, state: Any, site: Site) -> Tensor:
        x: Tensor = state[0]
        return x

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        x, (inner, empty) = state
        size = inner.size + y.abs().amax(-1, keepdim=True)
        added = y if self.config.mode == "plain" else y / size
        return x + added, (Inner(size, None), empty)

    def finish(self, state: Any) -> Tensor:
        x: Tensor = state[0]
        return x

    def flops_per_token(self) -> int:
        per_site = 2 * self.shape.hidden_size + 1 + self.shape.hidden_size * (self.config.mode == "damped")
        return 2 * self.shape.num_steps * per_site


#: Right, each in a way of its own.
RIGHT: tuple[type[Mixer], ...] = (
    HeadGates,
    Biased,
    NormedSource,
    WithLinear,
    SharedWeights,
    WithoutParameters,
    ReadsIds,
    LongTail,
    Nothing,
    Nested,
)
