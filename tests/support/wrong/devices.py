"""What fails on another device: constants of the CPU, values that are looked at, float64, each on one path only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mixerzoo import (
    AttentionCall,
    Context,
    MixingWeights,
    Site,
)
from wrong.basis import Remembering, Stream, caught_by
from wrong.decoding import SharedKeys


@caught_by("any_device")
class DecodesOnTheCpu(Stream):
    """A constant of the CPU where one token comes alone and nothing is to be trained."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if y.size(1) > 1 or torch.is_grad_enabled():
            return state + y / 2
        return state + y * torch.full((y.size(-1),), 0.5, dtype=y.dtype)


@caught_by("any_device")
class HalvesBf16OnTheCpu(Stream):
    """A table for bf16, made where tables are made."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        if state.dtype != torch.bfloat16:
            return state / 2
        return state * torch.tensor([0.5], dtype=state.dtype)


@caught_by("any_device")
class LooksAtFloat16(Stream):
    """Guards float16 by its largest value, which it has to look at."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        if state.dtype == torch.float16 and float(state.abs().max()) > 30000:
            return state / 2
        return state


@caught_by("any_device")
class EvaluatesOnTheCpu(Stream):
    """Right while it trains; the other mode was tried on one machine."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        weights = torch.ones(x.size(-1), dtype=x.dtype, device=x.device if self.training else "cpu")
        return x * weights


@caught_by("any_device")
class ServesOnTheCpu(Stream):
    """Right while gradients are kept."""

    def finish(self, state: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return state
        return state * torch.ones(state.size(-1), dtype=state.dtype)


@caught_by("any_device")
class AddsInFloat64(Stream):
    """Adds in float64, which some devices do not have."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return (state.double() + y.double()).to(y.dtype)


@caught_by("any_device")
class MakesFloat64Constants(Stream):
    """NumPy's habit: a ramp of float64, which is narrowed at once, but has to be made."""

    def finish(self, state: Tensor) -> Tensor:
        ramp = torch.linspace(0.5, 1.5, state.size(-1), dtype=torch.float64, device=state.device)
        return state * ramp.to(state.dtype)


@caught_by("any_device")
class ShowsOnTheCpu(Stream):
    """The weights that it shows lie elsewhere than their sources."""

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return None if call is not None else MixingWeights(torch.ones(1, dtype=state.dtype), (state,))


@caught_by("any_device")
class NarrowsOnTheCpu(SharedKeys):
    """Takes the last token by a sum with weights of the CPU."""

    card = replace(Stream.card, kv_bytes="2·G·d·e")

    def last_token(self, state: Tensor) -> Tensor:
        weights = torch.zeros(state.size(1), 1, dtype=state.dtype)
        weights[-1] = 1
        return (state * weights).sum(1, keepdim=True)


@caught_by("any_device")
class RemembersOnTheCpu(Remembering):
    """Its tail of a single token goes through the CPU."""

    def tail(self, x: Tensor, context: Context) -> Tensor:
        if x.size(1) > 1 or self.training:
            return x
        kept = torch.empty(x.shape, dtype=x.dtype)
        kept.copy_(x)
        return kept
