"""Chapters 3 to 5: what a mixer declares holds at size; its options, seeds and neutral settings mean something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.model import parameter_roles
from mixerzoo.testing.case import Case, perturb
from mixerzoo.testing.check import clause, same_values
from mixerzoo.testing.checks.accounting import assert_flops, assert_in_flight_bytes, assert_kv_bytes, assert_parameters
from mixerzoo.testing.drawn_options import choices, few_values


@clause("4.8", cost="dear", large=("long", "deep", "wide"))
@torch.no_grad()
def accounts_at_size(mixer: type[Mixer], case: Case) -> None:
    """Cache bytes, bytes in flight, FLOPs and parameters are those declared in deep, wide and long decoders too.

    Sees: float32, bf16; without gradients.
    Blind: accounts that go wrong beyond these sizes.
    """
    decoder = case.decoder(mixer, dtype=torch.float32)
    assert_parameters(decoder)
    for account in (assert_kv_bytes, assert_flops, assert_in_flight_bytes):
        account(decoder, case)


@clause("4.9", cost="once", plain=True)
@torch.no_grad()
def options_matter(mixer: type[Mixer], case: Case) -> None:
    """Two values of an option, of a few that are tried, make two mixers, or one of them is refused.

    Sees: float64; 20 layers, and 10 that run twice.
    Blind: options that matter only beside two others, or in training.
    """
    fields = mixer.Config.model_fields
    free = {name for name, info in fields.items() if info.is_required() or name not in case.options}
    for name in [name for name in fields if name in free]:
        values = few_values(mixer.Config, name)
        groups = [values]
        for options in _contexts(mixer, free - {name}, case.options):
            # Only what is alike everywhere so far has to be tried again.
            groups = [part for group in groups for part in _alike(mixer, options, name, group)]
        for group in groups:
            # Numbers may round to the same number of layers.
            numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in group)
            assert len(group) <= (2 if numbers else 1), (
                f"option {name!r}: {' and '.join(map(repr, group))} give the same mixer (weights, plan, roles, logits) "
                f"on decoders of {_DEPTH} layers and of {_DEPTH // 2} with two runs each"
            )


def _alike(mixer: type[Mixer], options: Mapping[str, Any], name: str, values: list[Any]) -> list[list[Any]]:
    """The values in groups that give the same mixer beside these options; what is refused is alone."""
    groups: list[tuple[list[Any] | None, list[Any]]] = []
    for value in values if len(values) > 1 else []:
        found = _print(mixer, {**options, name: value})
        for known, group in groups:
            if found is not None and known is not None and same_values(found, known):
                group.append(value)
                break
        else:
            groups.append((found, [value]))
    return [group for _, group in groups if len(group) > 1]


#: Layers, so that a number of layers among the options can differ within it.
_DEPTH = 20


def _contexts(mixer: type[Mixer], others: set[str], held: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options beside which a value may matter: those held, then with them each choice of each of the others."""
    yield dict(held)
    for other, values in choices(mixer.Config).items():
        for value in values if other in others else []:
            yield {**held, other: value}


def _print(mixer: type[Mixer], options: Mapping[str, Any]) -> list[Any] | None:
    """What tells one mixer from another; None where it is refused."""
    found: list[Any] = []
    model = {"hidden_size": 8, "intermediate_size": 8, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    for layers, loop in ((_DEPTH, {}), (_DEPTH // 2, {"count": 2})):
        case = Case({**model, "num_layers": layers, "loop": loop}, options, batch_size=1, chunks=(3,))
        try:
            decoder = case.decoder(mixer, perturbed=False)
        except (MixerzooError, ValidationError):
            found.append(None)
            continue
        roles = sorted((n, *astuple(role)) for n, role in parameter_roles(decoder.mixer).items())
        start = {name: parameter.clone() for name, parameter in decoder.mixer.named_parameters()}
        perturb(decoder, case.seed)
        found += [repr(decoder.plan), roles, start, decoder(case.tokens())]
    return None if all(part is None for part in found) else found


@clause("5.3", cost="once")
def neutral_words(mixer: type[Mixer], case: Case) -> None:
    """Where the card says in words that the decoder is a plain one, it says so as data that 5.1 tries, and else not.

    Sees: the card.
    Blind: whether words and data mean the same.
    """
    words, settings = mixer.card.neutral.strip(), mixer.card.neutral_settings
    assert settings or not words, f"the card says it is neutral {words!r}, and neutral_settings says nowhere"
    assert words or not settings, "the card's neutral_settings are not said in words in neutral"


@clause("3.13", large=())
@torch.no_grad()
def seeds_matter(mixer: type[Mixer], case: Case) -> None:
    """Initial values that are random are others with another seed.

    Sees: initial values of two seeds.
    Blind: random values of fewer than four entries.
    """
    decoders = [replace(case, seed=seed).decoder(mixer, perturbed=False) for seed in (case.seed, case.seed + 1)]
    ours, others = (dict(decoder.mixer.named_parameters()) for decoder in decoders)
    for name, value in ours.items():
        if torch.equal(value, others[name]):
            assert not _looks_random(value), f"the initial {name} looks random, and is the same with another seed"


def _looks_random(value: Tensor) -> bool:
    """Whether all entries differ and no row or column of them rises or falls throughout."""
    flat = value.detach().flatten()
    if flat.numel() < 4 or flat.unique().numel() < flat.numel():
        return False
    matrix = value.detach().reshape(-1, value.size(-1)) if value.ndim > 1 else flat[None]
    for lines in (matrix, matrix.T):
        steps = lines.diff(dim=1)
        if steps.numel() and bool(((steps > 0).all(1) | (steps < 0).all(1)).all()):
            return False
    return True
