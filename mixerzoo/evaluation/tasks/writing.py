"""What a task says about generation."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

from mixerzoo.errors import DataError
from mixerzoo.inference import Writing, check_sampling

__all__ = ["MAX_NEW_TOKENS", "Generation", "Writing"]

#: Tokens that are written where a task does not say how many.
MAX_NEW_TOKENS = 256
_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = ("until", *_MOST_TOKENS, "do_sample", "temperature", "top_k", "top_p")
#: Options that change nothing at this value.
_IDLE = {"num_beams": 1}


class Generation(NamedTuple):
    """How a task wants its text.

    Attributes:
        until: texts that end it.
        max_new_tokens: how long it may get.
        temperature: of sampling; 0 is greedy.
        top_k: as in `mixerzoo.generate`.
        top_p: as in `mixerzoo.generate`.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Generation:
        """From a task's ``generation_kwargs``.

        Raises:
            DataError: the task asks for more than `mixerzoo.generate` can do.
            MixerzooError: a number is out of its range.
        """
        unknown = [f"{k}={v!r}" for k, v in options.items() if k not in _KNOWN and (k, v) not in _IDLE.items()]
        if unknown:
            raise DataError(
                f"the task wants its text with {', '.join(unknown)}, which mixerzoo cannot do; known options: "
                f"{', '.join(_KNOWN)}"
            )
        lengths = [options[key] for key in _MOST_TOKENS if options.get(key) is not None]
        samples = options.get("do_sample")
        if not isinstance(samples, bool | None):
            raise DataError(f"the task wants its text with do_sample={samples!r}; it must be true or false")
        if samples is None:
            samples = options.get("temperature") is not None
        found = cls(
            until=_stops(options.get("until")),
            max_new_tokens=_length(lengths[0]) if lengths else MAX_NEW_TOKENS,
            temperature=_temperature(options.get("temperature", 1.0)) if samples else 0.0,
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
        )
        check_sampling(found.max_new_tokens, found.temperature, found.top_k, found.top_p)
        return found


def _stops(until: object) -> tuple[str, ...]:
    """Texts that end another; an empty one ends nothing, as for lm-eval's own models."""
    given: list[Any] = [] if until is None else list(until) if isinstance(until, list | tuple) else [until]
    for stop in given:
        if not isinstance(stop, str):
            raise DataError(f"the task wants its text until {stop!r}; only a text can end it")
    return tuple(stop for stop in given if stop)


def _length(value: Any) -> int:
    whole = value.is_integer() if isinstance(value, float) else isinstance(value, Integral)
    if isinstance(value, bool) or not whole:
        raise DataError(f"the task wants its text with a most of {value!r} tokens, which is no whole number")
    return int(value)


def _temperature(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value is no temperature")
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the task wants its text with a temperature of {value!r}, which is no number") from error
