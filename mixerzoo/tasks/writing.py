"""What a task says about generation, and one text as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mixerzoo.data import TextTokenizer
from mixerzoo.errors import DataError

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


class Writing:
    """A text that grows by tokens.

    Args:
        tokenizer: decodes them.
        until: texts that end it; they are not part of it.

    Attributes:
        ended: whether it has met its end.
    """

    def __init__(self, tokenizer: TextTokenizer, until: tuple[str, ...]) -> None:
        self.ended = False
        self._end_of_text = tokenizer.end_of_text_id
        self._stream = tokenizer.stream()
        self._until = until
        self._text = ""

    def add(self, token: int) -> None:
        """Take the next token, unless the text has ended."""
        if self.ended:
            return
        if token == self._end_of_text:
            self.ended = True
        else:
            self._text += self._stream.step(token)
            self.ended = any(stop in self._text for stop in self._until)

    def finish(self) -> str:
        """The text, without what ended it."""
        text = self._text + self._stream.finish()
        ends = [text.find(stop) for stop in self._until if stop in text]
        return text[: min(ends)] if ends else text
