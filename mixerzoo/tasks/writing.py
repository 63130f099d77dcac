"""What a task says about generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mixerzoo.errors import DataError
from mixerzoo.writing import Writing

__all__ = ["MAX_NEW_TOKENS", "Generation", "Writing"]

#: Tokens that are written where a task does not say how many.
MAX_NEW_TOKENS = 256
_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens")
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
        """
        unknown = [f"{k}={v!r}" for k, v in options.items() if k not in _KNOWN and (k, v) not in _IDLE.items()]
        if unknown:
            raise DataError(
                f"the task wants its text with {', '.join(unknown)}, which mixerzoo cannot do; known options: "
                f"{', '.join(_KNOWN)}"
            )
        until = options.get("until") or ()
        given = (until,) if isinstance(until, str) else tuple(until)
        lengths = [int(options[key]) for key in _MOST_TOKENS if options.get(key) is not None]
        samples = options.get("do_sample", "temperature" in options)
        return cls(
            # An empty text is in every text, and ends none.
            until=tuple(stop for stop in given if stop),
            max_new_tokens=lengths[0] if lengths else MAX_NEW_TOKENS,
            temperature=float(options.get("temperature", 1.0)) if samples else 0.0,
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
        )
