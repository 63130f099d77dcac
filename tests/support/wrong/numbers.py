"""Numbers that are not finite, rounded more than the dtype asks for, or of a dtype that nobody expected."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo import (
    Context,
    Plan,
    Site,
    Tail,
)
from mixerzoo.errors import MixerError
from wrong.basis import Scaled, Stream, caught_by

# Zeros, and rows that are alike.


@caught_by("degenerate_inputs")
class DividesByItsNorm(Stream):
    """A direction, of which a vector of zeros has none."""

    def finish(self, state: Tensor) -> Tensor:
        return state / torch.linalg.vector_norm(state, dim=-1, keepdim=True, dtype=_wide(state)).to(state.dtype)

    def flops_per_token(self) -> int:
        return 4 * self.shape.hidden_size


@caught_by("degenerate_inputs")
class TakesARootOfZero(Stream):
    """A norm with a finite value at zero, and no finite slope."""

    def finish(self, state: Tensor) -> Tensor:
        norm = state.to(_wide(state)).square().sum(-1, keepdim=True).sqrt()
        return state / (1 + norm).to(state.dtype)

    def flops_per_token(self) -> int:
        return 4 * self.shape.hidden_size


@caught_by("degenerate_inputs")
class ChoosesAfterDividing(Stream):
    """Puts a zero where it divided by zero; the gradient goes through the quotient all the same."""

    def finish(self, state: Tensor) -> Tensor:
        wide = state.to(_wide(state))
        norm = wide.abs().amax(-1, keepdim=True)
        return torch.where(norm > 0, wide / norm, 0.0).to(state.dtype)

    def flops_per_token(self) -> int:
        return 4 * self.shape.hidden_size


@caught_by("degenerate_inputs")
class CompressesByRoots(Stream):
    """sign(x)·√|x|, steep at zero."""

    def finish(self, state: Tensor) -> Tensor:
        wide = state.to(_wide(state))
        return (wide.sign() * wide.abs().sqrt()).to(state.dtype)

    def flops_per_token(self) -> int:
        return 4 * self.shape.hidden_size


@caught_by("degenerate_inputs")
class MeasuresSpread(Stream):
    """The deviation of the last three embeddings, which is zero where a token comes three times."""

    def plan(self) -> Plan:
        return replace(super().plan(), tail=Tail(2, self.shape.hidden_size))

    def start(self, x: Tensor, context: Context) -> Tensor:
        wide = torch.stack([x, *context.earlier]).to(_wide(x))
        return x + 0.1 * wide.var(0, correction=0).sqrt().to(x.dtype)

    def flops_per_token(self) -> int:
        return 5 * self.shape.hidden_size


@caught_by("degenerate_inputs")
class TakesTheLogarithm(Stream):
    """The logarithm of a vector's size."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        size = state.to(_wide(state)).square().mean(-1, keepdim=True)
        return state * (1 + 0.01 * size.log()).to(state.dtype)

    def flops_per_token(self) -> int:
        return 4 * 2 * self.shape.num_steps * self.shape.hidden_size


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# Rounding.


@caught_by("rounding")
class CarriesAnOffset(Stream):
    """An offset of eight, beside which bf16 keeps five bits of the stream."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 8

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state - 8

    def finish(self, state: Tensor) -> Tensor:
        return state - 8

    def flops_per_token(self) -> int:
        return 2 * (self.shape.num_steps + 1) * self.shape.hidden_size


@caught_by("rounding")
class CompressesOutputs(Stream):
    """Keeps eight bits of every output, where it is bf16."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if y.dtype == torch.bfloat16:
            y = y.to(torch.float8_e4m3fn).to(y.dtype)
        return state + y


@caught_by("rounding")
class ApproximatesInBf16(Stream):
    """A quick tanh where few bits count, which is off by up to eight per cent."""

    def finish(self, state: Tensor) -> Tensor:
        if state.dtype != torch.bfloat16:
            return state.tanh()
        wide = state.float().clamp(-(3**0.5), 3**0.5)
        return (3 * wide / (3 + wide.square())).to(state.dtype)


@caught_by("rounding")
class WeighsByADifference(Scaled):
    """(w + 16)·y − 16·y in place of w·y."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + ((self.scale[site.number] + 16) * y - 16 * y)

    def flops_per_token(self) -> int:
        return 6 * self.shape.num_steps * self.shape.hidden_size


# Ids of other types.


def _ids(context: Context) -> Tensor:
    if context.tokens is None:
        raise MixerError("this mixer needs the tokens' ids")
    return context.tokens


@caught_by("token_dtypes")
class OverflowsInt32(Stream):
    """Spreads ids by a product that 32 bits do not hold."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        place = (_ids(context) + 1) * 1_000_003 * 1_000_033 % 999_983 % 8
        return x * (1 + place[..., None].to(x.dtype) / 8)

    def flops_per_token(self) -> int:
        return self.shape.hidden_size


@caught_by("token_dtypes")
class TakesInt64ForGranted(Stream):
    """One-hot vectors are made of int64 only."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        one_hot = F.one_hot(_ids(context) % 2, 2).to(x.dtype)
        return x * (1 + one_hot[..., :1])

    def flops_per_token(self) -> int:
        return self.shape.hidden_size


@caught_by("token_dtypes")
class PacksIds(Stream):
    """Puts an id in the upper half of 64 bits and a mark in the lower; of 32 bits there is no upper half."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        packed = (_ids(context) << 32) + 1
        parity = (packed >> 32) % 2
        return x * (1 + parity[..., None].to(x.dtype))

    def flops_per_token(self) -> int:
        return self.shape.hidden_size
