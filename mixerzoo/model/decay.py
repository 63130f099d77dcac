"""Which parameters weight decay pulls to zero: the decoder's matrices, and of a mixer's parameters those it names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mixerzoo.errors import MixerError, did_you_mean
from mixerzoo.mixer import Mixer, ParameterRole


def parameter_roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """The role of every parameter of a mixer, by its name within the mixer.

    Args:
        mixer: the mixer.

    Raises:
        MixerError: the mixer gives a role to a parameter that it has not, or gives something that is no role.
    """
    named = mixer.parameter_roles()
    if not isinstance(named, Mapping):
        raise MixerError(
            f"mixer {mixer.name!r}: parameter_roles() returned {named!r}; it must map names of parameters to "
            "mixerzoo.ParameterRole"
        )
    roles = {name: ParameterRole() for name, _ in mixer.named_parameters()}
    for name, role in named.items():
        if name not in roles:
            raise MixerError(
                f"mixer {mixer.name!r} gives a role to {name!r}, which is none of its parameters"
                f"{did_you_mean(str(name), roles)}; take the names from self.named_parameters()"
            )
        if not isinstance(role, ParameterRole):
            raise MixerError(f"mixer {mixer.name!r}: the role of {name!r} is {role!r}, not a mixerzoo.ParameterRole")
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
    mixing: dict[int, bool] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        # The parts of a composition speak through it.
        if isinstance(module, Mixer) and module not in inside:
            inside.update(module.modules())
            roles = parameter_roles(module)
            mixing.update((id(parameter), roles[name].decay) for name, parameter in module.named_parameters())
    return [name for name, parameter in model.named_parameters() if mixing.get(id(parameter), parameter.ndim >= 2)]
