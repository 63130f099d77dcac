"""Chapter 6: training: gradients exist, are right, do not depend on how they are computed, and decay spoils nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder, parameter_roles
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.starts import starting_values

#: Steps of descent from the initial values, and how far each moves an entry, as a share of the parameter's largest one,
#: or of 1 where all are zero.
_STEPS, _PACE = 4, 0.01
#: Steps of the deepest decoder that 6.1 is held to.
_DEEPEST = 66
#: Seeds of weights and tokens that are tried where a gradient is zero: a hard gate may be shut for all tokens of some.
TRIES = 8
#: Standard errors from which on a mean over them is not zero by chance: by Student's t, 1e-8 of the random weights.
_CERTAIN = 12.0


def _loss(decoder: Decoder, case: Case) -> Tensor:
    logits = decoder(case.tokens())
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    loss: Tensor = (logits * weights).sum() + 0.1 * logits.square().sum()
    return loss


def _gradients(decoder: Decoder, case: Case) -> dict[str, Tensor | None]:
    decoder.zero_grad()
    _loss(decoder, case).backward()
    return {name: parameter.grad for name, parameter in decoder.named_parameters()}


@clause("6.1", large=("rows", "long", "deep"))
def every_parameter_learns(mixer: type[Mixer], case: Case) -> None:
    """Every parameter gets a gradient other than zero; one of the mixer's from the depth on that its role says.

    Sees: float64; backward; six tokens, of more seeds where a gradient is zero.
    Blind: entries of a parameter that get none where others do.
    """
    case = replace(case, chunks=(6,))
    decoder = case.decoder(mixer)
    depths = {f"model.mixer.{name}": role.from_depth for name, role in parameter_roles(decoder.mixer).items()}
    steps = decoder.shape.num_steps
    gradients = _gradients(decoder, case)
    moving = _moving(gradients)
    zero = {
        n for n, g in gradients.items() if g is not None and g.numel() and not g.any() and depths.get(n, 1) <= steps
    }
    for seed in range(case.seed + 1, case.seed + TRIES):
        if zero <= moving:
            break
        other = replace(case, seed=seed)
        moving |= zero & _moving(_gradients(other.decoder(mixer), other))
    for name, parameter in decoder.named_parameters():
        depth = depths.get(name, 1)
        assert depth <= _DEEPEST, f"{name} is used from {depth} steps on, and the kit sees no more than {_DEEPEST}"
        if not parameter.numel():
            continue
        assert parameter.requires_grad, f"{name} is frozen: requires_grad is False"
        if depth > steps:
            assert name not in moving, (
                f"{name} has a gradient in a decoder of {steps} steps, and its role says from_depth={depth}"
            )
            continue
        advice = f" in a decoder of {steps} steps; where that is right, its ParameterRole says so with from_depth"
        ending = advice if name in depths else ""
        assert gradients[name] is not None, f"{name} gets no gradient{ending}"
        assert name in moving, f"the gradient of {name} is zero{ending}"


def _moving(gradients: Mapping[str, Tensor | None]) -> set[str]:
    """The parameters that have a gradient other than zero."""
    return {n for n, g in gradients.items() if g is not None and g.numel() and bool(g.abs().max() > 0)}


@clause("6.2", large=("rows", "long", "deep", "big"))
def gradients_are_derivatives(mixer: type[Mixer], case: Case) -> None:
    """Gradients agree with finite differences, so nothing is detached that should not be.

    Sees: float64; backward; one direction for all.
    Blind: errors below 1e-4, and narrower dtypes.
    """
    decoder = case.decoder(mixer)
    gradients = _gradients(decoder, case)
    directions = {}
    for number, (name, parameter) in enumerate(decoder.named_parameters()):
        generator = torch.Generator().manual_seed(case.seed + number)
        directions[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    expected = sum(float((g * directions[n]).sum()) for n, g in gradients.items() if g is not None)
    # A steep case needs the smaller step; what is wrong is wrong with both.
    for step in (1e-6, 1e-8):
        ahead, behind = (_loss_beside(decoder, case, directions, distance) for distance in (step, -step))
        measured = (ahead - behind) / (2 * step)
        if abs(measured - expected) <= 1e-4 * max(1.0, abs(measured), abs(ahead)):
            return
    raise AssertionError(f"the derivative is {measured:.8g}, the gradient says {expected:.8g}")


@torch.no_grad()
def _loss_beside(decoder: Decoder, case: Case, directions: Mapping[str, Tensor], distance: float) -> float:
    """The loss with every parameter moved along its direction."""
    parameters = dict(decoder.named_parameters())
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.add_(directions[name], alpha=distance)
    loss = float(_loss(decoder, case))
    for name, parameter in parameters.items():
        parameter.copy_(kept[name])
    return loss


@clause("6.3", large=("rows", "long", "deep"))
def activation_checkpointing(mixer: type[Mixer], case: Case) -> None:
    """Recomputing each layer in the backward gives the same gradients.

    Sees: float64; backward.
    Blind: recomputation of less than a layer, and plans whose steps write one slot in turn.
    """
    decoder = case.decoder(mixer)
    if decoder.plan.is_sequential:
        # A decoder refuses to recompute it.
        return
    expected = {n: None if g is None else g.clone() for n, g in _gradients(decoder, case).items()}
    decoder.model.activation_checkpointing = "layers"
    for name, gradient in _gradients(decoder, case).items():
        plain = expected[name]
        assert (gradient is None) == (plain is None), f"{name} has a gradient in one of two ways only"
        if gradient is not None and plain is not None:
            assert_close(gradient, plain, f"the gradient of {name} with recomputation")


@clause("6.4")
@torch.no_grad()
def decay_by_role(mixer: type[Mixer], case: Case) -> None:
    """No weight decays that starts at a chosen value, and every role is that of a parameter.

    Sees: initial values of 16 seeds.
    Blind: decay or rates that are unwise in other ways.
    """
    decoder = case.decoder(mixer, perturbed=False)
    try:
        roles = parameter_roles(decoder.mixer)
    except MixerzooError as error:
        raise AssertionError(str(error)) from error
    decaying = {n: p for n, p in decoder.mixer.named_parameters() if roles[n].decay and p.numel()}
    for name, values in starting_values(decoder, decaying, case.seed).items():
        # Where the seed changes nothing the deviation is zero, and any mean but zero was chosen.
        deviation, mean = torch.std_mean(values, dim=0)
        excess = mean.abs() * len(values) ** 0.5 - _CERTAIN * deviation
        place = int(excess.argmax())
        assert float(excess.flatten()[place]) <= 0, (
            f"{name} decays, but starts at {float(mean.flatten()[place]):.3g} (entry {place} of {list(mean.shape)}, "
            f"mean over {len(values)} seeds): weight decay would pull it off; leave it out of parameter_roles"
        )


@clause("6.6", large=())
def every_parameter_starts(mixer: type[Mixer], case: Case) -> None:
    """From the initial values on, every parameter of the mixer gets a gradient other than zero within four steps.

    Sees: float64; initial values; six tokens, of more seeds where a gradient is zero.
    Blind: entries of a parameter that get none where others do, and starts from which learning is slow.
    """
    case = replace(case, chunks=(6,))
    roles = parameter_roles(case.decoder(mixer).mixer)
    waiting: set[str] | None = None
    for seed in range(case.seed, case.seed + TRIES):
        decoder = replace(case, seed=seed).decoder(mixer, perturbed=False)
        steps, parameters = decoder.shape.num_steps, dict(decoder.named_parameters())
        if waiting is None:
            own = {f"model.mixer.{name}": role for name, role in roles.items()}
            waiting = {n for n, role in own.items() if role.from_depth <= steps and parameters[n].numel()}
        for _ in range(_STEPS):
            if not waiting:
                return
            gradients = _gradients(decoder, replace(case, seed=seed))
            waiting -= _moving(gradients)
            _descend(parameters, gradients)
    assert not waiting, (
        f"{', '.join(sorted(waiting))} got no gradient in {_STEPS} steps from the initial values: where a product of "
        "several parameters starts at zero, all but one must start elsewhere"
    )


@torch.no_grad()
def _descend(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
    """A small step down, in place."""
    for name, gradient in gradients.items():
        if gradient is not None and gradient.numel():
            assert gradient.isfinite().all(), f"near the initial values the gradient of {name} is not finite"
            pace = _PACE * (float(parameters[name].abs().max()) or 1.0)
            parameters[name].sub_(gradient.sign(), alpha=pace)
