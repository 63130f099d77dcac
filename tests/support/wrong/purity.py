"""State that is kept, changed or left to chance, and returns of a wrong kind."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    Context,
    DecoderShape,
    MixerConfig,
    Site,
)
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.residual import Residual
from wrong.basis import Scaled, caught_by


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
