"""The optimiser of a recipe, over the parameters of its decoder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import Adafactor

from mixerzoo.errors import RunError
from mixerzoo.model import Decoder
from mixerzoo.recipe import (
    AdafactorOptimizer,
    LionOptimizer,
    MuonOptimizer,
    Recipe,
    TrainedParameter,
    trained_parameters,
)

#: Groups of parameters, as an optimiser takes them.
Groups = list[dict[str, Any]]


class Together(Optimizer):
    """Several optimisers as one: their groups in turn, and one state.

    Args:
        parts: each over parameters of its own.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = tuple(parts)
        self._sizes = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            part.param_groups, part.state = self.param_groups[first : first + size], self.state
            first += size

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Let every part take its step."""
        assert closure is None, "no part may compute the gradients anew"
        for part in self._parts:
            part.step()
        return None


def narrowed(kind: type[Optimizer]) -> type[Optimizer]:
    """An optimiser that keeps its state in bf16, and computes with it as the other does.

    One parameter steps at a time, so that no more than its state is ever there in full.

    Args:
        kind: the optimiser, whose state of a parameter does not depend on others.
    """

    class Narrowed(kind):  # type: ignore[misc, valid-type]
        param_groups: Groups

        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            assert closure is None, "the gradients are those of all parameters"
            groups = self.param_groups
            try:
                for group in groups:
                    for parameter in group["params"]:
                        self.param_groups = [{**group, "params": [parameter]}]
                        _cast(self.state.get(parameter, {}), parameter, parameter.dtype)
                        super().step()
                        _cast(self.state.get(parameter, {}), parameter, torch.bfloat16)
            finally:
                self.param_groups = groups
            return None

    Narrowed.__name__ = Narrowed.__qualname__ = f"Narrowed{kind.__name__}"
    return Narrowed


def _cast(state: dict[str, Any], parameter: Tensor, dtype: torch.dtype) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step":
            state[name] = value.to(dtype)


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser a state, in the dtypes that the state has and not in those of the weights.

    Args:
        optimizer: of the same groups.
        state: from its ``state_dict()``, already checked.
    """
    optimizer.load_state_dict(state)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in state["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor):
                own = optimizer.state[parameters[index]]
                own[name] = value.to(device=own[name].device, copy=True)


def check_optimizer_installed(recipe: Recipe) -> None:
    """Refuse an optimiser whose package is missing.

    Raises:
        RunError: it is.
    """
    if isinstance(recipe.train.optimizer, LionOptimizer):
        lion_class()


def make_optimizer(recipe: Recipe, decoder: Decoder) -> Optimizer:
    """The optimiser of a recipe.

    Args:
        recipe: its ``train`` section.
        decoder: the model, on the device where it trains.

    Raises:
        RunError: the optimiser's package is not installed.
        MixerError: the mixer gives a role that cannot be.
    """
    train = recipe.train
    choice, trained = train.optimizer, list(trained_parameters(recipe, decoder).values())
    if isinstance(choice, AdafactorOptimizer):
        options = {
            "beta1": choice.beta1,
            "decay_rate": choice.decay_rate,
            "clip_threshold": choice.clip_threshold,
            "scale_parameter": False,
            "relative_step": False,
        }
        return Adafactor(_groups(trained, train.weight_decay), lr=train.learning_rate, **options)  # type: ignore[no-untyped-call]
    wrap = narrowed if choice.state_precision == "bf16" else lambda kind: kind
    if isinstance(choice, LionOptimizer):
        lion = wrap(lion_class())
        return lion(_groups(trained, train.weight_decay), lr=train.learning_rate, betas=(choice.beta1, choice.beta2))  # type: ignore[call-arg]

    def adamw(parameters: list[TrainedParameter]) -> Optimizer:
        rate = parameters[0].learning_rate
        made = wrap(torch.optim.AdamW)(  # type: ignore[call-arg]
            _groups(parameters, train.weight_decay), lr=rate, betas=(train.beta1, train.beta2), eps=1e-8, fused=True
        )
        # Or GradScaler would let the fused step skip itself, which nobody could tell from one that was taken.
        made._step_supports_amp_scaling = False  # type: ignore[union-attr]  # what GradScaler asks
        return made

    if not isinstance(choice, MuonOptimizer):
        return adamw(trained)
    muon = wrap(torch.optim.Muon)(
        _groups([each for each in trained if each.is_matrix], train.weight_decay),
        lr=train.learning_rate,  # type: ignore[call-arg]
        momentum=choice.momentum,
        nesterov=choice.nesterov,
        ns_steps=choice.iterations,
        adjust_lr_fn=choice.scale,
    )
    return Together([muon, adamw([each for each in trained if not each.is_matrix])])


def lion_class() -> type[Optimizer]:
    """Lion, which PyTorch does not have.

    Raises:
        RunError: its package is not installed.
    """
    try:
        found: type[Optimizer] = importlib.import_module("lion_pytorch").Lion
    except ImportError as error:
        raise RunError(
            f"the optimizer 'lion' is not installed ({error}); run `pip install \"mixerzoo[lion]\"`, or set "
            "train.optimizer to adamw, muon or adafactor"
        ) from error
    return found


def _groups(trained: list[TrainedParameter], weight_decay: float) -> Groups:
    """Those that decay as all do, those that do not decay, then what differs from them, in the order of the model."""
    found: dict[tuple[bool, float, float], list[Tensor]] = {(True, weight_decay, 1.0): [], (False, 0.0, 1.0): []}
    # As before there were other groups: what decays comes first.
    for each in sorted(trained, key=lambda each: not each.decays):
        found.setdefault((each.decays, each.weight_decay, each.factor), []).append(each.parameter)
    rate = trained[0].learning_rate
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            **({} if factor == 1 else {"lr": rate * factor, "lr_factor": factor}),
        }
        for (_, decay, factor), parameters in found.items()
    ]
