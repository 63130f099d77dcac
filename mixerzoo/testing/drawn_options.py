"""Hypothesis strategies of a mixer's options, made from the types and bounds of its ``Config``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import MixerConfig

#: Option → strategy of its values, in place of what its type suggests.
Overrides = Mapping[str, st.SearchStrategy[Any]]

#: How far whole numbers go beyond a bound where there is no other, and how far fractions do.
_REACH, _FRACTION_REACH = 5, 2.0
#: Fractions are drawn on a grid of so many steps: none is too small to matter, and all can be read.
_STEPS = 16


def options(config: type[MixerConfig], overrides: Overrides | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a mixer, drawn from the types and bounds of its ``Config``.

    An option with ``examples`` takes one of them. Options that their types cannot describe keep their default;
    ``overrides`` says better.

    Args:
        config: the mixer's ``Config``.
        overrides: strategies for some of the options.

    Raises:
        MixerzooError: nothing can be drawn for an option.
    """
    overrides = overrides or {}
    drawn = {
        name: overrides[name] if name in overrides else _strategy(name, info)
        for name, info in config.model_fields.items()
    }
    for name, strategy in drawn.items():
        _validate(name, strategy)

    def valid(chosen: dict[str, Any]) -> bool:
        try:
            config.model_validate(chosen)
        except ValidationError:
            return False
        return True

    return st.fixed_dictionaries({n: s for n, s in drawn.items() if s is not None}).filter(valid)


def choices(config: type[MixerConfig]) -> dict[str, list[Any]]:
    """Option → the values that it can have beside its default, for options that have few: switches, names, examples.

    Args:
        config: the mixer's ``Config``.
    """
    found = {}
    for name, info in config.model_fields.items():
        groups = [info.examples] if info.examples else _values(info.annotation, _Bounds().within(info.metadata)) or []
        few = [value for group in groups for value in group]
        if not info.examples and not all(isinstance(value, bool | str | None) for value in few):
            continue
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        found[name] = [value for value in few if value != default]
    return found


def few_values(config: type[MixerConfig], name: str) -> list[Any]:
    """Some values of an option, its default among them: all that are few, six whole numbers, five fractions.

    Args:
        config: the mixer's ``Config``.
        name: of the option.
    """
    info = config.model_fields[name]
    default = [] if info.is_required() else [info.get_default(call_default_factory=True)]
    groups = [info.examples] if info.examples else _values(info.annotation, _Bounds().within(info.metadata)) or []
    found = default[:]
    for group in groups:
        fractions = bool(group) and all(isinstance(value, float) for value in group)
        found += group[:: max(1, len(group) // 4)] if fractions else group
    hashable = [value for value in found if isinstance(value, bool | int | float | str | None)]
    return list(dict.fromkeys(hashable))


def _validate(name: str, strategy: Any) -> None:
    """Refuse what is no strategy, or one that cannot work, such as ``st.integers(5, 3)``."""
    if strategy is None:
        return
    try:
        assert isinstance(strategy, st.SearchStrategy), f"{strategy!r} is not a Hypothesis strategy"
        strategy.validate()
    except (AssertionError, InvalidArgument) as error:
        raise MixerzooError(f"option {name!r}: nothing can be drawn from what `overrides` says: {error}") from error


def _strategy(name: str, info: FieldInfo) -> st.SearchStrategy[Any] | None:
    """What an option's declaration suggests, or None to leave it at its default."""
    default = [] if info.is_required() else [info.get_default(call_default_factory=True)]
    if info.examples:
        return _one_of([default, info.examples])
    groups = _values(info.annotation, _Bounds().within(info.metadata))
    if groups is None:
        if default:
            return None
        kind = getattr(info.annotation, "__name__", str(info.annotation))
        raise MixerzooError(
            f"option {name!r}: the kit cannot draw values of type {kind}, and it has no default; give it `examples`, "
            "or a strategy in `overrides`"
        )
    if not any(groups):
        raise MixerzooError(
            f"option {name!r}: no value lies within its bounds; mend them, or give it a strategy in `overrides`"
        )
    # A default that is one of few values comes by itself; it is not drawn more often, at the cost of the others.
    few = [value for group in groups for value in group if not isinstance(value, float)]
    return _one_of(groups if default and default[0] in few else [default, *groups])


def _one_of(groups: Iterable[list[Any]]) -> st.SearchStrategy[Any]:
    """One of the groups, then one of its values."""
    return st.one_of([st.sampled_from(group) for group in groups if group])


@dataclass(frozen=True)
class _Bounds:
    """Where numbers lie.

    Attributes:
        low: the lowest, or infinite, and whether it is left out itself.
        high: the highest, or infinite, and whether it is allowed itself.
    """

    low: tuple[float, bool] = (-math.inf, False)
    high: tuple[float, bool] = (math.inf, True)

    def within(self, rules: Iterable[Any]) -> _Bounds:
        """The narrowest that the rules of annotated_types say; other rules are left to validation."""
        bounds = self
        for rule in rules:
            if isinstance(rule, FieldInfo | Interval):
                bounds = bounds.within(rule.metadata if isinstance(rule, FieldInfo) else rule)
            if isinstance(rule, Ge | Gt):
                low: Any = rule.ge if isinstance(rule, Ge) else rule.gt
                bounds = replace(bounds, low=max(bounds.low, (float(low), isinstance(rule, Gt))))
            if isinstance(rule, Le | Lt):
                high: Any = rule.le if isinstance(rule, Le) else rule.lt
                bounds = replace(bounds, high=min(bounds.high, (float(high), isinstance(rule, Le))))
        return bounds

    def ends(self, reach: float) -> tuple[float, float]:
        """Finite ends; one that is missing is ``reach`` away from the other, and a lowest is 0 if that is below."""
        low, high = self.low[0], self.high[0]
        if math.isinf(low):
            low = 0 if high > 0 else high - reach
        return low, (low + reach if math.isinf(high) else high)

    def whole(self) -> list[Any]:
        """A few whole numbers, from the low end."""
        low, high = self.ends(_REACH)
        first = math.floor(low) + 1 if self.low[1] else math.ceil(low)
        last = math.floor(high) if self.high[1] else math.ceil(high) - 1
        return list(range(first, min(last, first + _REACH) + 1))

    def fractions(self) -> list[Any]:
        """Fractions from end to end."""
        low, high = self.ends(_FRACTION_REACH)
        grid = [low + (high - low) * i / _STEPS for i in range(_STEPS)] + [high]
        above = [x for x in grid if low < x <= high or (x == low <= high and not self.low[1])]
        return [x for x in dict.fromkeys(above) if x < high or self.high[1]]


def _values(annotation: Any, bounds: _Bounds) -> list[list[Any]] | None:
    """Values of a type, a group for each member of a union, or None for a type that cannot be drawn."""
    simple: dict[Any, Callable[[], list[Any]]] = {
        bool: lambda: [False, True],
        int: bounds.whole,
        float: bounds.fractions,
        NoneType: lambda: [None],
    }
    origin, arguments = get_origin(annotation), get_args(annotation)
    groups: list[list[Any]] | None = None
    if annotation in simple:
        groups = [simple[annotation]()]
    elif origin is Literal:
        groups = [list(arguments)]
    elif origin is Annotated:
        groups = _values(arguments[0], bounds.within(arguments[1:]))
    elif origin in (Union, UnionType):
        parts = [_values(part, bounds) for part in arguments]
        known = [part for part in parts if part is not None]
        groups = [group for part in known for group in part] if len(known) == len(parts) else None
    return groups
