"""Mixers that are wrong on purpose, one bug each, and the check of the conformance kit that must catch it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    Context,
    DecoderShape,
    Mixer,
    MixerConfig,
    MixingWeights,
    ParameterRole,
    Plan,
    ReferenceReading,
    Site,
)
from mixerzoo.errors import MixerError
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import TokenMixer
from mixerzoo_plugins import denseformer, depth_attention
from mixerzoo_plugins.attn_res import AttnRes
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.residual import Residual
from naive import attn_res as naive_attn_res
from naive import denseformer as naive_denseformer
from naive import depth_attention as naive_depth_attention

#: Wrong mixer → name of the check that must catch it.
WRONG: dict[type[Mixer], str] = {}
#: Wrong mixer → the reference that it is held against, where the check needs one.
REFERENCES: dict[type[Mixer], Reference] = {}


def caught_by(check: str, reference: Reference | None = None, *, named: bool = True) -> Any:
    """Enter a class in `WRONG`.

    Args:
        check: that must catch it.
        reference: what the check needs.
        named: name the mixer after the class; else it passes for the right one.
    """

    def enter(mixer: type[Mixer]) -> type[Mixer]:
        if named:
            mixer.name = "".join("_" + c.lower() if c.isupper() else c for c in mixer.__name__).strip("_")
        WRONG[mixer] = check
        if reference is not None:
            REFERENCES[mixer] = reference
        return mixer

    return enter


def shifted(x: Tensor) -> Tensor:
    """Each token's vector [B, T, D] moved to the next token of the call; the first gets zeros."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


class Scaled(Residual):
    """Correct: each sublayer's output is added with a learned weight."""

    name = "scaled"
    card = replace(Residual.card, parameters="2·L", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.empty(2 * shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.scale, 1.0, std, generator=generator)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.scale[2 * site.step + (site.branch == "mlp")] * y


class Strided(Scaled):
    """Correct: outputs are weighted at every stride-th step only."""

    name = "strided"

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, description="Steps between two weighted ones.")


class Projected(Residual):
    """Correct: the stream goes through a matrix that starts at random and decays."""

    name = "projected"
    card = replace(Residual.card, parameters="D²", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.matrix = nn.Parameter(torch.empty(shape.hidden_size, shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.matrix, std=std, generator=generator)

    def finish(self, state: Tensor) -> Tensor:
        return state + state @ self.matrix

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size**2

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"matrix": ParameterRole(decay=True)}


CORRECT: tuple[type[Mixer], ...] = (Residual, DenseFormer, DepthAttention, Scaled, Strided, Projected)


# Along the sequence.


@caught_by("causality")
class LeaksOneTokenAhead(Residual):
    """Adds the next token's output."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y + 0.1 * torch.cat([y[:, 1:], y[:, -1:]], dim=1)


@caught_by("causality")
class LeaksThroughMean(Residual):
    """Centres over time."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state - state.mean(1, keepdim=True)


@caught_by("causality")
class LeaksInEvaluation(LeaksOneTokenAhead):
    """A right one in training, and nobody generates while training."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y if self.training else super().write(state, site, y)


@caught_by("causality")
class LeaksWithinBlocks(Residual):
    """Centres over whole blocks of sixteen tokens, which short sequences do not fill."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        blocks = [part - part.mean(1, keepdim=True) if part.size(1) == 16 else part for part in y.split(16, 1)]
        return state + torch.cat(blocks, 1)


class TwoSwitches(MixerConfig):
    """Options that do nothing, whose number changes every draw of the kit."""

    first: bool = Field(False, description="Nothing.")
    second: bool = Field(False, description="Nothing.")


class FourSwitches(TwoSwitches):
    third: bool = Field(False, description="Nothing.")
    fourth: int = Field(0, ge=0, le=5, description="Nothing.")


@caught_by("causality")
class LeaksWithinBlocksWithTwoSwitches(LeaksWithinBlocks):
    """The same, with other draws."""

    Config = TwoSwitches


@caught_by("causality")
class LeaksWithinBlocksWithFourSwitches(LeaksWithinBlocks):
    """The same, with other draws."""

    Config = FourSwitches


@caught_by("cached_decoding")
class CountsBlocks(Residual):
    """Scales from the tenth token of a call on, as a buffer of ten tokens would."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + torch.cat([y[:, :10], 2 * y[:, 10:]], 1)


class Named(MixerConfig):
    """An option with many values."""

    kind: Literal["a", "b", "c", "d", "e", "f", "g"] = Field("d", description="Which.")


@caught_by("causality")
class LeaksWithOneOption(Residual):
    """Right but for one of seven values of an option."""

    Config = Named

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (shifted(y.flip(1)).flip(1) if self.config.kind == "g" else y)


@caught_by("causality")
class LeaksInBf16(LeaksOneTokenAhead):
    """A fast path for half precision, which nobody compares with the other."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return super().write(state, site, y) if state.dtype == torch.bfloat16 else state + y


@caught_by("causality")
class LeaksUnderAutocast(LeaksOneTokenAhead):
    """A fast path for mixed precision."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return super().write(state, site, y) if torch.is_autocast_enabled("cpu") else state + y


@caught_by("token_local_mixing")
class MeansOverThePast(Residual):
    """A running mean: causal, but a token's past is attention's to look at."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        counts = torch.arange(1, state.size(1) + 1, device=state.device, dtype=state.dtype)
        return state + state.cumsum(1) / counts[:, None]


@caught_by("rows_independent")
class MixesRows(Residual):
    """Centres over the batch."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y - 0.5 * y.mean(0, keepdim=True)


@caught_by("rows_independent")
class NumbersRows(Residual):
    """Weights rows by their place in the batch."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        rows = torch.arange(x.size(0), device=x.device, dtype=x.dtype)
        return x * (1 + 0.1 * rows)[:, None, None]


@caught_by("left_padding")
class ReadsFirstToken(Residual):
    """Takes the first column for the first token of the text."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 0.5 * x[:, :1]


@caught_by("packed_documents")
class ShiftsTokens(Residual):
    """Each token reads the one before it, across the border of documents."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 0.5 * shifted(x)


# Decoding.


@caught_by("cached_decoding")
class MixesAfterTheCache(Residual):
    """Adds the value of the token before, which in decoding is in the cache and not in the call."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        k, v = call.k, call.v
        return state, k, v + 0.5 * torch.cat([torch.zeros_like(v[:, :, :1]), v[:, :, :-1]], dim=2)


@caught_by("cached_decoding")
class MixesRawValuesWhenDecoding(DepthAttention):
    """Keeps raw values for later layers where one token comes alone, mixed ones elsewhere."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, q, k, v = call.site, call.q, call.k, call.v
        new, k, mixed = super().mix_kv(state, call)
        if q.size(2) == 1 and new.kept and site.step in self.held[site.step]:
            new = new._replace(kept=(*new.kept[:-1], depth_attention.KeyValue(k, v)))
        return new, k, mixed


@caught_by("cached_decoding")
class TreatsFirstTokenOfCall(Residual):
    """Leaves the first token of each call alone."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + torch.cat([torch.zeros_like(y[:, :1]), y[:, 1:]], dim=1)


@caught_by("fixed_cache")
class ScalesByLength(Residual):
    """Divides by the number of tokens in the call."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y / y.size(1)


class Positions(Residual):
    """Counts tokens on the module; more than one at a time is taken for a new text."""

    position = 0

    def start(self, x: Tensor, context: Context) -> Tensor:
        first = 0 if x.size(1) > 1 else self.position
        self.position = first + x.size(1)
        positions = torch.arange(first, self.position, device=x.device, dtype=x.dtype)
        return x + 0.1 * positions[:, None]


@caught_by("crop")
class CountsPositions(Positions):
    """Its count does not go back with the cache."""


@caught_by("copy_and_reset")
class SharesItsCount(Positions):
    """Two texts share one count."""


@caught_by("reorder")
class RemembersRows(Residual):
    """Keeps the first token of each row on the module, where no reordering reaches it; see `Positions`."""

    first: Tensor | None = None

    def start(self, x: Tensor, context: Context) -> Tensor:
        if self.first is None or x.size(1) > 1:
            self.first = x[:, :1]
        return x + 0.5 * self.first


class RefusesNearlyAll(Residual):
    """Serves no decoder that is worth drawing, so no clause can be said to hold."""

    name = "refuses_nearly_all"

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if (shape.num_layers, shape.num_heads, shape.hidden_size, shape.head_dim) != (5, 6, 12, 8):
            raise MixerError("no such decoder")


class SharedKeys(Residual):
    """Correct: all steps attend with the first one's keys and values, so a prefill can stop there."""

    def plan(self) -> Plan:
        first = (0,) * self.shape.num_steps
        return Plan.borrowing(self.shape.order, first, first, (None,) * self.shape.num_steps)


@caught_by("last_token")
class KeepsTheFirstToken(SharedKeys):
    """Narrows its state to the wrong end."""

    card = replace(Residual.card, kv_bytes="2·G·d·e")

    def last_token(self, state: Tensor) -> Tensor:
        return state[:, :1]


@caught_by("last_token")
class NarrowsTooFar(Residual):
    """Keeps the last row in place of the last token; its own plan never asks, but a composition's may."""

    def last_token(self, state: Tensor) -> Tensor:
        return state[-1:]


# Purity.


@caught_by("nothing_kept")
class CountsCalls(Residual):
    """Keeps a counter for its logs."""

    calls = 0

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.calls += 1
        return x


@caught_by("nothing_kept")
class KeepsStateOnModule(Residual):
    """Hangs the embedding on the module."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.embedding = x
        return x

    def finish(self, state: Tensor) -> Tensor:
        return state + self.embedding


@caught_by("nothing_kept")
class KeepsStateOnClass(Residual):
    """Collects norms in a list of the class."""

    norms: ClassVar[list[Tensor]] = []

    def finish(self, state: Tensor) -> Tensor:
        self.norms.append(state.norm())
        return state


@caught_by("nothing_kept")
class KeepsStateInDeque(Residual):
    """Keeps the last embeddings in a ring."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.history: deque[Tensor] = deque(maxlen=4)

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.history.append(x)
        return x


@caught_by("nothing_kept")
class KeepsStateInNamespace(Residual):
    """Keeps the embedding in an object of its own."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scratch = SimpleNamespace(x=None)

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.scratch.x = x
        return x


@caught_by("repeatable")
class WarmsUp(Residual):
    """Weights outputs by how often it was called."""

    calls = 0

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.calls += 1
        return x * self.calls


@caught_by("repeatable")
class DependsOnOtherInstances(Residual):
    """Takes its place in a table of the class, so the order of building matters."""

    table: ClassVar[dict[int, float]] = {}

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.place = len(self.table)
        self.table[self.place] = 1 + 0.1 * self.place

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x * self.table[self.place]


@caught_by("inputs_untouched")
class MutatesState(Residual):
    """Adds in place."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state.add_(y)


@caught_by("inputs_untouched")
class MutatesOutput(Residual):
    """Adds the stream to the sublayer's output in place."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return y.add_(state)


@caught_by("inputs_untouched")
class MutatesQuery(Residual):
    """Normalises the query for its own use, in place."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = call.q, call.k, call.v
        weight = q.div_(1 + q.norm(dim=-1, keepdim=True)).mean((1, 3), keepdim=True)
        return state, k, v * (1 + weight)


@caught_by("inputs_untouched")
class MutatesKey(Residual):
    """Scales keys in place."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        k, v = call.k, call.v
        return state, k.mul_(0.5), v


@caught_by("inputs_untouched")
class MutatesValue(DepthAttention):
    """Scales values in place before it mixes them."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, q, k, v = call.site, call.q, call.k, call.v
        return super().mix_kv(state, site, q, k, v.mul_(0.5))


@caught_by("no_chance")
class DropsOut(Residual):
    """Dropout that asks nobody whether it is training."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + nn.functional.dropout(y, 0.1)


@caught_by("no_chance")
class InitialisesGlobally(Scaled):
    """Draws its weights from the global generator."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.scale, 1.0, std)


@caught_by("no_chance")
class InitialisesByPython(Scaled):
    """Draws its weights from Python's generator."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.constant_(self.scale, random.random())


@caught_by("no_chance")
class SeedsPython(Scaled):
    """Seeds Python's generator, whose numbers then are the same in every run, and the host's too."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        random.seed(0)
        nn.init.constant_(self.scale, random.random())


@caught_by("repeatable")
class EndsTheProcess(Residual):
    """Asks for a licence."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        raise SystemExit("no licence")


@caught_by("train_and_eval")
class DampsInTraining(Residual):
    """Weights outputs by their chance to be kept, as stochastic depth does, but in the wrong mode."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (0.9 * y if self.training else y)


@caught_by("without_tokens")
class CountsOnTokens(Residual):
    """Scales by the token's id, and dies of embeddings."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x * (1 + context.tokens[..., None] % 2)  # type: ignore[index]


@caught_by("without_tokens")
class ServesOneTokenInstead(Residual):
    """Takes every token for the first of the vocabulary where it is not told."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x if context.tokens is None else x * (1 + context.tokens[..., None] % 2)


@dataclass
class Holder:
    """A stream that can be rebound."""

    x: Tensor


@caught_by("returns")
class RebindsItsState(Residual):
    """Changes no tensor in place, but the object that holds it."""

    def start(self, x: Tensor, context: Context) -> Any:
        return Holder(x)

    def read(self, state: Any, site: Site) -> Tensor:
        return state.x

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        state.x = state.x + y
        return state

    def finish(self, state: Any) -> Tensor:
        return state.x


@caught_by("returns")
class ForgetsToReturn(Residual):
    """Its state is lost on the way."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        state = state + y  # type: ignore[return]


@caught_by("returns")
class ReadsOneChannel(Residual):
    """A mean that keeps its dimension: it broadcasts, and nothing complains."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state if site.branch == "mlp" else state.mean(-1, keepdim=True)


@caught_by("returns")
class DropsTheState(Residual):
    """Returns what it mixed and no state."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> Any:
        k, v = call.k, call.v
        return k, v


@caught_by("returns")
class SharesOneValueHead(Residual):
    """Gives all key/value heads the values of the first, without saying so: attention broadcasts them."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        k, v = call.k, call.v
        return state, k, v[:, :1]


@caught_by("returns")
class FinishesOneToken(Residual):
    """Takes the last token for the whole."""

    def finish(self, state: Tensor) -> Tensor:
        return state[:, -1:]


# Accounting.


@caught_by("kv_bytes")
class DeclaresHalfTheCache(Residual):
    """Its card forgets that there are keys and values."""

    card = replace(Residual.card, kv_bytes="L·G·d·e")


@caught_by("kv_bytes")
class ChangesItsPlan(Residual):
    """Plans windows once it has been asked."""

    asked = 0

    def plan(self) -> Plan:
        self.asked += 1
        return replace(super().plan(), windows=(self.asked,) * self.shape.num_steps)


@caught_by("in_flight_bytes")
class DeclaresOneStream(DenseFormer):
    """Forgets its history."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return self.shape.hidden_size * dtype.itemsize


@caught_by("in_flight_bytes")
class KeepsMoreThanItShows(Residual):
    """Its state is a view of eight streams."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return torch.cat([state + y, *[torch.zeros_like(y)] * 7], -1)[..., : y.size(-1)]


@caught_by("in_flight_bytes")
class DeclaresTheWorst(Residual):
    """Declares a history that it does not keep."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return (3 + self.shape.num_steps) * super().in_flight_bytes(dtype)


@caught_by("parameters")
class RegistersBuffer(Residual):
    """Keeps a constant in a buffer, which nothing fills after the meta device."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.register_buffer("damping", torch.tensor(0.5), persistent=False)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.damping * y


@caught_by("parameters")
class HidesParameters(Scaled):
    """Its card says that there are none."""

    card = Residual.card


@caught_by("parameters")
class MiscountsParameters(Scaled):
    """Its card knows of one weight a layer."""

    card = replace(Scaled.card, parameters="L")


@caught_by("in_flight_bytes")
class BelittlesItsHistory(DenseFormer):
    """Declares what it holds, and tells its readers another figure."""

    card = replace(DenseFormer.card, in_flight_bytes="D·e")


@caught_by("in_flight_bytes")
class BoastsOfItsHistory(Residual):
    """Its card tells of streams that it does not hold."""

    card = replace(Residual.card, in_flight_bytes="(L+2)·D·e")


@caught_by("flops")
class DeclaresTooFewFlops(DenseFormer):
    """By a factor of ten."""

    def flops_per_token(self) -> int:
        return super().flops_per_token() // 10


@caught_by("flops")
class DeclaresTooManyFlops(DenseFormer):
    """By a factor of ten."""

    def flops_per_token(self) -> int:
        return 10 * super().flops_per_token()


@caught_by("sources")
class NamesLaterSources(DenseFormer):
    """Off by one."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        sites = self.shape.sites()
        return tuple(sites[min(len(sites) - 1, sites.index(s) + 2)] if s else None for s in super().sources(site))


@caught_by("card")
class LeavesAnOptionUndescribed(Residual):
    """Nobody can tell what it does."""

    class Config(MixerConfig):
        """Options."""

        strength: float = Field(1.0, ge=0, le=1)


@caught_by("card")
class TakesUpABanana(Residual):
    """A formula of nothing known."""

    card = replace(Residual.card, in_flight_bytes="banana")


@caught_by("card")
class WritesNoEquation(Residual):
    """The card's equation is empty."""

    card = replace(Residual.card, equation=" ")


# Equivalence.


@caught_by("neutral_settings")
class NotNeutralAtDepthOne(DepthAttention):
    """A null source takes part of the value even where there is no other."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, q, k, v = call.site, call.q, call.k, call.v
        return super().mix_kv(state, site, q, k, 0.5 * v)


@caught_by("neutral_settings")
class NotNeutralAtInit(DenseFormer):
    """Starts from a uniform average."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.constant_(weight, 1 / weight.numel())


# Training.


@caught_by("every_parameter_learns")
class HasUnusedParameter(Scaled):
    """A weight for a site that does not exist."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.last = nn.Parameter(torch.empty(()))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, std)
        nn.init.ones_(self.last)


@caught_by("every_parameter_learns")
class CancelsParameter(Scaled):
    """Softmax over a single logit is one, whatever the logit."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        weight = self.scale[2 * site.step + (site.branch == "mlp")]
        return state + weight.unsqueeze(0).softmax(0) * y


@caught_by("gradients_are_derivatives")
class DetachesSources(DenseFormer):
    """Saves memory at the price of gradients."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        x, history = super().write(state, site, y)
        return denseformer.State(x, tuple(h.detach() for h in history))


class Outputs(NamedTuple):
    """Every output so far, in one list."""

    outputs: list[Tensor]


@caught_by("activation_checkpointing")
class AppendsToState(Residual):
    """The state is a list that grows in place, so what is computed again is computed on more."""

    def start(self, x: Tensor, context: Context) -> Any:
        return Outputs([x])

    def read(self, state: Any, site: Site) -> Tensor:
        return torch.stack(state.outputs).sum(0)

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        state.outputs.append(y)
        return state

    def finish(self, state: Any) -> Tensor:
        return torch.stack(state.outputs).sum(0)


def decays(*names: str) -> dict[str, ParameterRole]:
    """Roles of parameters that decay."""
    return {name: ParameterRole(decay=True) for name in names}


@caught_by("decay_by_role")
class DecaysItsIdentity(Residual):
    """The stream goes through a matrix that starts as the identity, which decay pulls to zero."""

    card = replace(Residual.card, parameters="D²")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.matrix = nn.Parameter(torch.empty(shape.hidden_size, shape.hidden_size))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.eye_(self.matrix)

    def finish(self, state: Tensor) -> Tensor:
        return state @ self.matrix

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return decays("matrix")


@caught_by("decay_by_role")
class DecaysAnIdentityAmongNoise(DecaysItsIdentity):
    """The same, and the rest of the matrix is drawn."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.matrix, std=std, generator=generator)
        self.matrix.fill_diagonal_(1.0)


@caught_by("decay_by_role")
class DecaysWhatStartsAroundOne(Scaled):
    """Weights that are drawn around one."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return decays("scale")


@caught_by("decay_by_role")
class DecaysWhatIsNotThere(Scaled):
    """Misspelt, so that it says nothing."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"scales": ParameterRole()}


@caught_by("decay_by_role")
class SaysDecayWithoutARole(Scaled):
    """True is no role."""

    def parameter_roles(self) -> Any:
        return {"scale": True}


@caught_by("decay_by_role")
class ListsItsDecay(Scaled):
    """A list of names says no roles."""

    def parameter_roles(self) -> Any:
        return ["scale"]


# What is saved.


@caught_by("config_round_trip")
class AllowsUnknownOptions(Strided):
    """A misspelt option is silently dropped."""

    class Config(MixerConfig):
        """Options."""

        model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
        stride: int = Field(1, ge=1, description="Steps between two weighted ones.")


@caught_by("config_round_trip")
class ChangesItsOptions(Strided):
    """Counts the stride from zero and stores it from one, so that every reading adds one."""

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, description="Steps between two weighted ones.")

        @field_validator("stride")
        @classmethod
        def from_one(cls, value: int) -> int:
            """Off by one, every time."""
            return value + 1


@caught_by("config_round_trip")
class LosesItsOptions(Strided):
    """An option that is left out of what is saved."""

    class Config(MixerConfig):
        """Options."""

        stride: int = Field(1, ge=1, exclude=True, description="Steps between two weighted ones.")


@caught_by("state_dict_round_trip")
class KeepsWeightsAsAttribute(Residual):
    """A drawn weight is a float of the module; the state dict knows nothing of it."""

    scale = 1.0

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        self.scale = float(torch.rand((), generator=generator))

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.scale * y


@caught_by("checkpoint_round_trip")
class RewritesItsConfig(Strided):
    """Replaces its options by derived ones, and derives again when it is loaded."""

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config.model_copy(update={"stride": 2 * config.stride}), shape)


@caught_by("stock_checkpoints")
class RecognisesEverything(Residual):
    """Takes every checkpoint for its own."""

    @classmethod
    def read_reference(cls, config: Any, tensors: Any) -> ReferenceReading | None:
        return ReferenceReading(options={})


# Precisions, devices, sizes.


@caught_by("precisions")
class SumsInSinglePrecision(Residual):
    """Adds in float32, also where everything else is float64."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return (state.float() + y.float()).to(y.dtype)


@caught_by("precisions")
class ReturnsWrongDtype(Residual):
    """Keeps the stream in float32 and never casts back."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))


@caught_by("precisions")
class CancelsInBf16(Residual):
    """Carries a large offset along, in which bf16 loses the stream."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 1000

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state - 1000

    def finish(self, state: Tensor) -> Tensor:
        return state - 1000


@caught_by("wide_norms")
class NormsInBf16(Residual):
    """Norms in the dtype of the stream."""

    def finish(self, state: Tensor) -> Tensor:
        return state * torch.rsqrt(state.square().mean(-1, keepdim=True) + self.shape.norm_eps)


@caught_by("wide_norms")
class TakesRootsInBf16(Residual):
    """Norms with a power in place of a root."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state * (state.square().sum(-1, keepdim=True) / state.size(-1) + 1e-6) ** -0.5


@caught_by("wide_norms")
class WeighsInBf16(DenseFormer):
    """A softmax in the dtype of the weights."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.zeros_(weight)

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        if site.step + 1 in self.averaged:
            self.weights[str(site.step + 1)].softmax(-1)
        return super().write(state, site, y)


@caught_by("large_activations")
class Overflows(Residual):
    """A softmax without subtracting the maximum."""

    def finish(self, state: Tensor) -> Tensor:
        weights = state.exp()
        return state * weights / weights.sum(-1, keepdim=True)


@caught_by("meta_device")
class BuildsOnTheCpu(Residual):
    """A constant on a fixed device."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y * torch.full((y.size(-1),), 0.5, device="cpu", dtype=y.dtype)


@caught_by("extremes")
class NeedsGroupsOfFour(Residual):
    """Normalises groups of four channels, without refusing a size that has none."""

    def finish(self, state: Tensor) -> Tensor:
        groups = state.unflatten(-1, (-1, 4))
        return (groups / (1 + groups.norm(dim=-1, keepdim=True))).flatten(-2)


@caught_by("extremes")
class KnowsTwelveSteps(Residual):
    """A table of a fixed number of depths, which none of the usual sizes exceeds."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        decay = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
        return state + decay[site.layer] * y


@caught_by("extremes")
class FailsToBuild(Residual):
    """Counts on a second layer, and says nothing where there is none."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.second = shape.order[1]


@caught_by("ordinary_decoder")
class RefusesDepth(Residual):
    """Serves one layer, where there is little to get wrong, and refuses the rest in words."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.num_layers > 1:
            raise MixerError("one layer is enough for everybody")


@caught_by("causality")
class DividesByDepth(Residual):
    """Fails in its constructor, at every size: a case can be named all the same."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weight = 1 / (shape.num_layers - shape.num_layers)


@caught_by("compiles")
class BreaksGraphsByDefault(Residual):
    """Compiles with every value of an option but the default."""

    Config = Named

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if self.config.kind == "d" and site.step:
            torch._dynamo.graph_break()
        return state + y


@caught_by("compiles")
class BranchesOnData(Residual):
    """Skips outputs that are small."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if y.abs().mean() > 0.01:
            return state + y
        return state


@caught_by("causality")
class SplitsInputsOfTheMlp(Residual):
    """Separate inputs at a site that has one."""

    def read(self, state: Tensor, site: Site) -> Tensor | AttentionInputs:  # type: ignore[override]
        return AttentionInputs(state, state, state)


# Another method than the one that it says it is.


@caught_by("reference_logits", naive_depth_attention.REFERENCE)
class MixesRawValues(DepthAttention):
    """Later layers get raw values in place of mixed ones: sound in itself, and another method."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, k, v = call.site, call.k, call.v
        new, k, mixed = super().mix_kv(state, call)
        kept = new.memory.kept
        if kept and site.step in self.held[site.step]:
            kept = (*kept[:-1], kept[-1]._replace(v=kept[-1].v if kept[-1].v is None else v))
        return new._replace(memory=new.memory._replace(kept=kept)), k, mixed


@caught_by("reference_logits", naive_denseformer.REFERENCE)
class AveragesAverages(DenseFormer):
    """Its history keeps what the averages gave, not the raw outputs of the blocks."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        new = super().write(state, site, y)
        if site.branch == "mlp" and site.step + 1 in self.held[site.step + 1]:
            new = new._replace(history=(*new.history[:-1], new.x))
        return new


class Weighted(Residual):
    """Correct: attention and MLP outputs are weighted by two parameters whose names have the same letters."""

    card = replace(Residual.card, parameters="2", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.w_am, self.w_ma = (nn.Parameter(torch.empty(())) for _ in range(2))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.parameters():
            nn.init.ones_(weight)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (self.w_am if site.branch == "attention" else self.w_ma) * y


class NaiveWeighted(TokenMixer):
    """x ← x + w·y."""

    def __init__(self, embedding: Tensor, weights: dict[str, Tensor]) -> None:
        super().__init__(embedding)
        self.weights = weights

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + self.weights[branch] * y


def weighted(mixer: Any) -> Any:
    """`Reference.begin` of `Weighted`."""
    return lambda embedding, token: NaiveWeighted(embedding, {"attention": mixer.w_am, "mlp": mixer.w_ma})


WEIGHTED = Reference(weighted)


@caught_by("reference_logits", WEIGHTED)
class TakesTheOtherWeight(Weighted):
    """Two parameters changed places; with equal noise on both, nobody could tell."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (self.w_ma if site.branch == "attention" else self.w_am) * y


@caught_by("reference_accounts", naive_denseformer.REFERENCE)
class ForgetsTheEmbedding(DenseFormer):
    """Its picture lacks a source, which no rule about pictures forbids."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return tuple(source for source in super().sources(site) if source is not None)


@caught_by("reference_accounts", naive_denseformer.REFERENCE)
class HoldsABitMore(DenseFormer):
    """Declares one stream more than it ever holds."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return super().in_flight_bytes(dtype) + self.shape.hidden_size * dtype.itemsize


@caught_by("reference_accounts", naive_depth_attention.REFERENCE)
class CountsScoresOnly(DepthAttention):
    """Half of its FLOPs, which passes for a convention."""

    def flops_per_token(self) -> int:
        return super().flops_per_token() // 2


@caught_by("reference_checkpoints", naive_attn_res.REFERENCE, named=False)
class ForgetsBlocks(AttnRes):
    """Reads every checkpoint of its method as one without blocks."""

    @classmethod
    def read_reference(cls, config: Any, tensors: Any) -> ReferenceReading | None:
        reading = super().read_reference(config, tensors)
        if reading is None:
            return None
        return replace(reading, options={**reading.options, "block_size": 1})


@caught_by("reference_start", naive_attn_res.REFERENCE)
class StartsElsewhere(AttnRes):
    """Its recency bias starts at 0, whatever the option says."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, std)
        for name, parameter in self.named_parameters():
            if name.endswith("recency_bias"):
                nn.init.zeros_(parameter)


@caught_by("reference_cases", naive_depth_attention.REFERENCE)
class ScoresAnyway(DepthAttention):
    """On latents its uniform weights are not: a combination that draws rarely meet."""

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scores = self.scores or shape.latent_dim > 0


class Lenient(depth_attention.Config):
    """Options without their rule."""

    def _first_is_alone(self) -> Any:
        return self


@caught_by("reference_refusals", naive_depth_attention.REFERENCE)
class RefusesNothing(DepthAttention):
    """Takes a stride beside `sources: first`, which has none."""

    Config = Lenient


@caught_by("mixing_weights")
class ShowsOtherWeights(AttnRes):
    """Shows the mean, which it does not take."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and shown._replace(weights=torch.full_like(shown.weights, 1 / len(shown.sources)))


@caught_by("mixing_weights")
class ShowsLaterTokens(Residual):
    """Its two sources are one, and how they share it depends on the whole text."""

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        share = state[..., :1].mean(1, keepdim=True).expand_as(state[..., :1])
        return MixingWeights(torch.cat([share, 1 - share], dim=-1), (state, state))


@caught_by("mixing_weights")
class ShowsWeightsOfChannels(Residual):
    """One weight a channel, where one a token is promised."""

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return MixingWeights(torch.ones_like(state)[..., None], (state,))
