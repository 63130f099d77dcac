"""Refuses calls of the kit that would quietly check less than they seem to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixerzoo.errors import MixerzooError, did_you_mean
from mixerzoo.mixer import Mixer
from mixerzoo.testing.against import Reference
from mixerzoo.testing.check import CHECKS, EXAMPLES, known_check
from mixerzoo.testing.drawn_options import Overrides, options


def check_arguments(
    mixers: Sequence[type[Mixer]],
    *,
    references: Mapping[Any, Any],
    profile: str,
    overrides: Overrides,
    expected_failures: Iterable[str],
    only: Iterable[str] | None = None,
) -> None:
    """Refuse what names nothing.

    Args:
        mixers: under test.
        references: of some of them.
        profile: name of the profile.
        overrides: strategies of options.
        expected_failures: names or clauses of checks.
        only: names or clauses of the checks to run; None: all.

    Raises:
        MixerzooError: says what is meant by nobody, with the nearest known name.
    """
    if profile not in EXAMPLES:
        raise MixerzooError(f"no profile is named {profile!r}; known: {', '.join(EXAMPLES)}")
    _check_mixers(mixers)
    for mixer, reference in references.items():
        if mixer not in mixers:
            raise MixerzooError(f"`references` names {_name(mixer)}, which is not among the mixers under test")
        if not isinstance(reference, Reference):
            raise MixerzooError(f"the reference of {_name(mixer)} is no mixerzoo.testing.Reference: {reference!r}")
    known = {name: None for mixer in mixers for name in mixer.Config.model_fields}
    for name in overrides:
        if name not in known:
            raise MixerzooError(
                f"`overrides` names {name!r}, which is no option of {', '.join(map(_name, mixers))}"
                f"{did_you_mean(name, known)}; options: {', '.join(known) or 'none'}"
            )
    for mixer in mixers:
        try:
            options(mixer.Config, overrides)
        except MixerzooError as error:
            raise MixerzooError(f"{_name(mixer)}: {error}") from error
    chosen = None if only is None else names_of(only)
    for name in chosen or ():
        if not EXAMPLES[profile][CHECKS[name].cost]:
            raise MixerzooError(f"the check {name!r} is slow and runs only in the thorough profile")
    for name in expected_failures:
        if known_check(name).name not in (chosen or CHECKS):
            raise MixerzooError(f"`expected_failures` names {name!r}, which `only` leaves out")


def names_of(checks: Iterable[str]) -> set[str]:
    """The names of checks that are given by name or by the number of their clause.

    Raises:
        MixerzooError: there is no such check.
    """
    return {known_check(name).name for name in checks}


def _check_mixers(mixers: Sequence[Any]) -> None:
    if not mixers:
        raise MixerzooError("there is no mixer to check")
    for mixer in mixers:
        if not (isinstance(mixer, type) and issubclass(mixer, Mixer)):
            raise MixerzooError(f"{mixer!r} is not a subclass of mixerzoo.Mixer")
        missing = [name for name in ("name", "card") if not hasattr(mixer, name)]
        if missing:
            raise MixerzooError(f"the mixer {mixer.__qualname__} has no {' and no '.join(missing)}")


def _name(mixer: Any) -> str:
    return getattr(mixer, "__qualname__", repr(mixer))
