"""What training does with each parameter: whether weight decay pulls it to zero, and how fast it learns.

Of the decoder the matrices decay, at the learning rate of all; of its parameters the mixer says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from mixerzoo.errors import MixerError, did_you_mean
from mixerzoo.mixer import Mixer, ParameterRole


def parameter_roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """The role of every parameter of a mixer, by its name within the mixer.

    Args:
        mixer: the mixer.

    Raises:
        MixerError: the mixer gives a role to a parameter that it has not, or gives something that is no role, or a
            factor that is no finite number above 0, a depth that is no whole one, or a matrix that is none.
    """
    named = mixer.parameter_roles()
    if not isinstance(named, Mapping):
        raise MixerError(
            f"mixer {mixer.name!r}: parameter_roles() returned {named!r}; it must map names of parameters to "
            "mixerzoo.ParameterRole"
        )
    parameters = dict(mixer.named_parameters())
    roles = dict.fromkeys(parameters, ParameterRole())
    for name, role in named.items():
        if name not in roles:
            raise MixerError(
                f"mixer {mixer.name!r} gives a role to {name!r}, which is none of its parameters"
                f"{did_you_mean(str(name), roles)}; take the names from self.named_parameters()"
            )
        if not isinstance(role, ParameterRole):
            raise MixerError(f"mixer {mixer.name!r}: the role of {name!r} is {role!r}, not a mixerzoo.ParameterRole")
        factor: object = role.lr_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise MixerError(
                f"mixer {mixer.name!r}: the lr_factor of {name!r} is {factor!r}; it must be a finite number above 0"
            )
        depth: object = role.from_depth
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise MixerError(
                f"mixer {mixer.name!r}: the from_depth of {name!r} is {depth!r}; it must be a number of steps above 0"
            )
        if role.matrix and parameters[name].ndim != 2:
            raise MixerError(
                f"mixer {mixer.name!r}: the role of {name!r} says that it is a matrix, and it has "
                f"{parameters[name].ndim} dimensions"
            )
        roles[name] = role
    return roles


def decay_parameter_names(model: nn.Module) -> list[str]:
    """The parameters of a model that weight decay applies to.

    Outside its mixer the matrices (embedding and head among them), not norms, biases and other vectors; of the
    mixer's parameters those of which it says so (`Mixer.parameter_roles`), whatever their number of dimensions.

    Args:
        model: a `Decoder`, or any module that has one in it: a Hugging Face model, a wrapper.

    Returns:
        Names as in ``model.named_parameters()``, in that order.

    Raises:
        MixerError: the mixer gives a role to a parameter that it has not.
    """
    mixing = roles_within(model)
    return [
        name
        for name, parameter in model.named_parameters()
        if (mixing[id(parameter)].decay if id(parameter) in mixing else parameter.ndim >= 2)
    ]


def apply_lr_factors(optimizer: Optimizer, model: nn.Module) -> Optimizer:
    """Give parameters whose learning rate differs groups of their own, behind those that are there.

    To be called before a scheduler is made, which takes each group's rate from it. Where every factor is 1 nothing
    changes, nor does it at a second call.

    Args:
        optimizer: fresh, over the parameters of the model; changed in place.
        model: as in `decay_parameter_names`.

    Returns:
        The optimizer.

    Raises:
        MixerError: as `parameter_roles`.
    """
    factors = {number: role.lr_factor for number, role in roles_within(model).items() if role.lr_factor != 1}
    for group in [group for group in optimizer.param_groups if "lr_factor" not in group]:
        apart: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if id(parameter) in factors:
                apart.setdefault(factors[id(parameter)], []).append(parameter)
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in factors]
        for factor, parameters in apart.items():
            own = {"params": parameters, "lr": group["lr"] * factor, "lr_factor": factor}
            optimizer.add_param_group({**group, **own})
    return optimizer


def roles_within(model: nn.Module) -> dict[int, ParameterRole]:
    """The roles of the mixer's parameters in a model, by the parameter's identity.

    Args:
        model: as in `decay_parameter_names`.

    Raises:
        MixerError: as `parameter_roles`.
    """
    found: dict[int, ParameterRole] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        # The parts of a composition speak through it.
        if isinstance(module, Mixer) and module not in inside:
            inside.update(module.modules())
            roles = parameter_roles(module)
            found.update((id(parameter), roles[name]) for name, parameter in module.named_parameters())
    return found
