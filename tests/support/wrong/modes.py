"""What goes wrong in another mode: without gradients, copied, in a second thread, in float16, under torch.func."""

from __future__ import annotations

import threading
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    Mixer,
    MixerConfig,
    Site,
)
from wrong.basis import Scaled, Stream, caught_by

# Gradients, no_grad, inference_mode.


@caught_by("gradient_modes")
class RoundsWithGradients(Stream):
    """Spares memory where there is something to train, at the price of bits."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (y.float().to(y.dtype) if torch.is_grad_enabled() else y)


@caught_by("gradient_modes")
class AddsInPlaceForInference(Stream):
    """Takes inference mode for leave to write anywhere."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state.add_(y) if torch.is_inference_mode_enabled() else state + y


@caught_by("gradient_modes")
class AddsInPlaceWithGradients(Stream):
    """Saves activations where they are many: in training."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return y.add_(state) if torch.is_grad_enabled() else state + y


@caught_by("gradient_modes")
class RoundsForInference(Stream):
    """Serves in float32 whatever the weights are."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            return (state.float() + y.float()).to(y.dtype)
        return state + y


class TooLarge(torch.autograd.Function):
    """a + b, too large by a millionth."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return (a + b) * 1.000001

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return 1.000001 * gradient, 1.000001 * gradient


@caught_by("gradient_modes")
class FusesWithGradients(Stream):
    """A fused addition with a backward of its own, which nobody compared with the plain one."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return TooLarge.apply(state, y) if y.requires_grad else state + y  # type: ignore[no-any-return]


# Copies.


@caught_by("copies")
class ClosesOverItself(Scaled):
    """A closure made at building: in a copy it still weighs with the original's weights."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weigh = lambda site, y: self.scale[site.number] * y

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.weigh(site, y)


@caught_by("copies")
class SharesWeightsWithItsCopy(Scaled):
    """Its copies have its weights, and train them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Mixer:
        copied = type(self)(self.config, self.shape)
        copied.scale = self.scale
        return copied.train(self.training)


class Strength(MixerConfig):
    """Options."""

    strength: float = Field(0.5, ge=0, le=1, description="Weight of every output.")


class Weakened(Stream):
    """Correct: outputs are weighted by an option."""

    Config = Strength

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.strength = config.strength

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.strength * y

    def flops_per_token(self) -> int:
        return 2 * self.shape.num_steps * self.shape.hidden_size


@caught_by("copies")
class ForgetsOptionsInPickle(Weakened):
    """Leaves out of a pickle what can be derived, and derives it from the defaults."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "strength"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.strength = self.Config().strength  # type: ignore[attr-defined]


@caught_by("copies")
class CannotBePickled(Stream):
    """Holds a lock."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.lock = threading.Lock()


@caught_by("copies")
class RestoresItsWeights(Scaled):
    """Keeps wide weights for the way back, and gives them back after others were loaded."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.scale.detach()
        moved: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        wide = before.is_floating_point() and not before.is_meta
        if wide and self.scale.element_size() < before.element_size():
            _wide[self] = before
        elif self in _wide and self.scale.dtype == _wide[self].dtype:
            self.scale.data = _wide.pop(self)
        return moved


_wide: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


@caught_by("copies")
class PreparesItsWeights(Scaled):
    """Serving, it looks at its weights once; those that are loaded later stay unread."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().write(state, site, y)
        if self not in _prepared or _prepared[self].dtype != self.scale.dtype:
            _prepared[self] = self.scale.detach().clone()
        return state + _prepared[self][site.number] * y


_prepared: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


# Threads.


@caught_by("threads")
class HandsOverInTheClass(Stream):
    """`finish` finds the embedding in the class, where `start` of any thread puts it; nothing is left afterwards."""

    current: ClassVar[list[Tensor]] = []

    def start(self, x: Tensor, context: Context) -> Tensor:
        self.current.append(x)
        return x

    def finish(self, state: Tensor) -> Tensor:
        return state + self.current.pop()

    def last_token(self, state: Tensor) -> None:
        return None


@caught_by("threads")
class CountsSites(Stream):
    """Counts sites on the module, from zero to zero."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.number = 0

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return state + y / (1 + site.number)
        self.number += 1
        state = state + y / self.number
        if self.number == 2 * self.shape.num_steps:
            self.number = 0
        return state


_of_thread = threading.local()


@caught_by("threads")
class KnowsOneThread(Stream):
    """Keeps a setting where only the thread that built it finds it."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        _of_thread.weight = 0.5

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + _of_thread.weight * y


_shared: dict[str, Tensor] = {}


@caught_by("threads")
class WritesIntoAScratch(Stream):
    """What `read` notes down `write` uses, in a table of the module file."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        _shared[site.branch] = state[..., :1].abs()
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        size = _shared.pop(site.branch, None)
        return state + (y if size is None else y / (1 + size))

    def flops_per_token(self) -> int:
        return 2 * self.shape.num_steps * (self.shape.hidden_size + 2)


# Half precision.


@caught_by("half_precision")
class OverflowsInFloat16(Stream):
    """Carries the stream at 65536 times its size, which no other dtype minds."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x * 65536

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state / 65536

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y * 65536

    def finish(self, state: Tensor) -> Tensor:
        return state / 65536

    def flops_per_token(self) -> int:
        return (4 * self.shape.num_steps + 2) * self.shape.hidden_size


@caught_by("half_precision")
class MasksWithABillion(Stream):
    """A softmax over two sources, one of which is masked by a number that float16 does not have."""

    def finish(self, state: Tensor) -> Tensor:
        logits = torch.stack([state.mean(-1, dtype=_wider(state)), torch.zeros_like(state[..., 0])], -1)
        masked = logits.to(state.dtype).masked_fill(torch.tensor([False, True], device=state.device), -1e9)
        weights = masked.to(_wider(state)).softmax(-1).to(state.dtype)
        return weights[..., :1] * state

    def flops_per_token(self) -> int:
        return 4 * self.shape.hidden_size


@caught_by("half_precision")
class WidensBf16Only(Stream):
    """Its norm is computed in float32 where the stream is bf16; of float16 nobody thought."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        wide = state.float() if state.dtype == torch.bfloat16 else state
        square = (100 * wide).square().sum(-1, keepdim=True)
        return (wide * torch.rsqrt(square / 10_000 + 1e-6)).to(state.dtype)

    def flops_per_token(self) -> int:
        return 2 * self.shape.num_steps * (4 * self.shape.hidden_size + 3)


@caught_by("half_precision")
class KeepsItsCasts(Scaled):
    """A weight that was cast under autocast stays so, also where there is no autocast any more."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().write(state, site, y)
        if torch.is_autocast_enabled("cpu") and self not in _casts:
            _casts[self] = self.scale.detach().to(torch.get_autocast_dtype("cpu"))
        scale = _casts.get(self, self.scale)[site.number]
        return state + scale.to(y.dtype) * y


_casts: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def _wider(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# torch.func.


@caught_by("function_transforms")
class FindsItsWeightsInATable(Scaled):
    """Looks its weights up by a table of its own, so whoever calls it with others gets the old ones."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        if self not in _weights or _weights[self].is_meta:
            _weights[self] = self.scale
        return state + _weights[self][site.number] * y


_weights: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


@caught_by("function_transforms")
class FillsATable(Scaled):
    """Writes what it weighs into a tensor made for it, which torch.vmap does not allow."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        weighted = torch.zeros(y.shape, dtype=y.dtype, device=y.device)
        weighted[:] = self.scale[site.number] * y
        return state + weighted


class Weigh(torch.autograd.Function):
    """w · y, in the old way of writing it, which torch.func refuses."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(w, y)
        return w * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        w, y = ctx.saved_tensors
        return (gradient * y).sum(), gradient * w


@caught_by("function_transforms")
class HasAnOldBackward(Scaled):
    """Saves nothing and gains nothing, but has a backward of its own."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + Weigh.apply(self.scale[site.number], y)
