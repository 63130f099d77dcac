"""What mixers cost with default options on one decoder, so that they can be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from mixerzoo.errors import MixerError, PluginError
from mixerzoo.mixer import DecoderShape, Mixer, Plan
from mixerzoo.validation import problems

#: A decoder of 24 layers and about 350 million parameters.
COMPARED = DecoderShape(
    hidden_size=1024,
    num_layers=24,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    order=tuple(range(24)),
    norm_eps=1e-5,
    vocab_size=50304,
)
#: Tokens in the caches that are compared.
TOKENS = 4096


class Figures(NamedTuple):
    """What a mixer costs on the compared decoder.

    Attributes:
        parameters: that it adds.
        cache_relative: bytes of the cache over residual's.
        in_flight_relative: bytes in flight per token over those of one hidden state.
    """

    parameters: int
    cache_relative: float
    in_flight_relative: float


def with_defaults(mixer_class: type[Mixer], shape: DecoderShape, chosen: Mapping[str, Any] | None = None) -> Mixer:
    """A mixer with default options, without memory for its weights.

    Args:
        mixer_class: its class.
        shape: the decoder.
        chosen: options that differ from the default or have none.

    Raises:
        MixerError: an option has no default, or the mixer does not take the decoder.
        Exception: whatever a faulty mixer raises.
    """
    try:
        config = mixer_class.Config.model_validate(chosen or {})
    except ValidationError as error:
        found = problems(error, mixer_class.Config, chosen or {})
        raise MixerError("; ".join(problem.message for problem in found)) from error
    with torch.device("meta"):
        return mixer_class(config, shape)


def figures(mixer: Mixer) -> Figures:
    """A mixer's figures.

    Args:
        mixer: on the decoder `COMPARED`.

    Raises:
        PluginError: it says what makes no sense.
        Exception: whatever a faulty mixer raises.
    """
    plan = mixer.plan()
    if not isinstance(plan, Plan):
        raise PluginError(f"plan() returned {plan!r}, which is not a mixerzoo.Plan")
    in_flight = mixer.in_flight_bytes(torch.bfloat16)
    if type(in_flight) is not int:
        raise PluginError(f"in_flight_bytes() returned {in_flight!r}, which is not a whole number")
    return Figures(
        sum(parameter.numel() for parameter in mixer.parameters()),
        plan.elements(COMPARED, TOKENS) / Plan.plain(COMPARED.order).elements(COMPARED, TOKENS),
        in_flight / (COMPARED.hidden_size * torch.bfloat16.itemsize),
    )


def short(number: int) -> str:
    """A count in at most five characters: 0, 768, 98.3K, 1.2M."""
    rounded = float(f"{number:.3g}")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if rounded >= size:
            return f"{rounded / size:.3g}{unit}"
    return str(number)
