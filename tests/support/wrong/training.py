"""Gradients, recomputation, roles of parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    MixerConfig,
    ParameterRole,
    Site,
)
from mixerzoo_plugins import denseformer
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.residual import Residual
from wrong.basis import Projected, Scaled, caught_by


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


@caught_by("every_parameter_learns")
class SaysItIsIdle(Scaled):
    """A weight that every decoder uses is said to be used in deep ones only."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"scale": ParameterRole(from_depth=3)}


@caught_by("every_parameter_starts")
class StartsAtADeadPoint(Residual):
    """A low-rank map of the stream whose two matrices both start at zero: neither ever moves."""

    card = replace(Residual.card, parameters="4·D", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.down = nn.Parameter(torch.empty(2, shape.hidden_size))
        self.up = nn.Parameter(torch.empty(shape.hidden_size, 2))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.down)
        nn.init.zeros_(self.up)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y + state @ self.down.T @ self.up.T


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


@caught_by("decay_by_role")
class NeverLearns(Projected):
    """A learning rate of zero: the parameter stays where it started, whatever is trained."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"matrix": ParameterRole(lr_factor=0.0)}
