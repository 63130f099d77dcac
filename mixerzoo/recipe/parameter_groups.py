"""How each parameter of a decoder is trained: its kind, its rate and its decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mixerzoo.mixer import ParameterRole
from mixerzoo.model import Decoder, roles_within
from mixerzoo.recipe.optimizer import MuonOptimizer, ParameterGroup
from mixerzoo.recipe.recipe import Recipe

Kind = Literal["embedding", "head", "matrices", "vectors", "mixer"]


@dataclass(frozen=True)
class TrainedParameter:
    """One parameter and how it is trained.

    Attributes:
        parameter: itself.
        kind: which key of ``train.groups`` speaks of it.
        is_matrix: whether it maps hidden states: a layer's matrix, or one of the mixer whose role says so.
        decays: whether weight decay applies to it by its role, be it 0.
        weight_decay: what applies; 0 where it does not decay.
        learning_rate: the peak of its schedule over `factor`.
        factor: of the learning rate.
    """

    parameter: nn.Parameter
    kind: Kind
    is_matrix: bool
    decays: bool
    weight_decay: float
    learning_rate: float
    factor: float


def trained_parameters(recipe: Recipe, decoder: Decoder) -> dict[str, TrainedParameter]:
    """How a recipe trains each parameter of its decoder.

    Args:
        recipe: the experiment.
        decoder: its decoder, on any device.

    Returns:
        By the parameter's name, in the decoder's order.

    Raises:
        MixerError: the mixer gives a role that cannot be.
    """
    roles, train = roles_within(decoder), recipe.train
    found = {}
    for name, parameter in decoder.named_parameters():
        kind = _kind(decoder, name, parameter, roles)
        # The decoder's own: its matrices decay.
        role = roles.get(id(parameter), ParameterRole(decay=parameter.ndim >= 2, matrix=kind == "matrices"))
        group = getattr(train.groups, kind)
        decay = group.weight_decay if isinstance(group, ParameterGroup) else None
        decay = train.weight_decay if decay is None else decay
        muon = role.matrix and isinstance(train.optimizer, MuonOptimizer)
        own_rate = train.optimizer.adamw_learning_rate if isinstance(train.optimizer, MuonOptimizer) else None
        found[name] = TrainedParameter(
            parameter=parameter,
            kind=kind,
            is_matrix=role.matrix,
            decays=role.decay,
            weight_decay=decay if role.decay else 0.0,
            learning_rate=train.learning_rate if muon or own_rate is None else own_rate,
            factor=role.lr_factor * group.learning_rate_factor * _width_factor(recipe, role.matrix, kind),
        )
    return found


def idle_groups(recipe: Recipe, decoder: Decoder) -> list[str]:
    """What ``train.groups`` asks for and no parameter hears, in sentences; a grid of mixers may well have such runs.

    Args:
        recipe: the experiment.
        decoder: its decoder, on any device.

    Raises:
        MixerError: the mixer gives a role that cannot be.
    """
    asked, mixer = recipe.train.groups.mixer, recipe.mixer.name
    mixing = [each for each in trained_parameters(recipe, decoder).values() if each.kind == "mixer"]
    if asked != ParameterGroup() and not mixing:
        return [f"train.groups.mixer changes nothing: the mixer {mixer} has no parameters."]
    if asked.weight_decay is not None and not any(each.decays for each in mixing):
        return [f"train.groups.mixer.weight_decay changes nothing: no parameter of the mixer {mixer} decays."]
    return []


def _kind(decoder: Decoder, name: str, parameter: nn.Parameter, roles: dict[int, ParameterRole]) -> Kind:
    if id(parameter) in roles:
        return "mixer"
    if parameter is decoder.model.embed_tokens.weight:
        return "embedding"
    if parameter is decoder.lm_head.weight:
        return "head"
    return "matrices" if parameter.ndim >= 2 else "vectors"


def width_ratio(recipe: Recipe) -> float:
    """The base width over the width; 1 where the recipe scales nothing."""
    scaling = recipe.train.width_scaling
    return 1.0 if scaling is None else scaling.base_hidden_size / recipe.model.hidden_size


def _width_factor(recipe: Recipe, is_matrix: bool, kind: Kind) -> float:
    """What the width makes of a learning rate.

    Of an optimiser whose updates have entries of one size (Yang et al., arXiv 2203.03466, table 3): 1 / fan-in for
    what sums over the width. Muon's updates have one spectral norm, to be √(fan-out / fan-in) (Yang et al., arXiv
    2310.17813): the original scale has that, and the one that matches AdamW is √width too large.
    """
    ratio, optimizer = width_ratio(recipe), recipe.train.optimizer
    if is_matrix and isinstance(optimizer, MuonOptimizer):
        return float(ratio**0.5) if optimizer.scale == "match_rms_adamw" else 1.0
    return ratio if is_matrix or kind == "head" else 1.0
