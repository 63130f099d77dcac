"""A text as it is written, token by token, up to one of its ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mixerzoo.data import TextFormat, TextTokenizer

#: Why a text ended: a token that ends texts, or a text that was to stop it.
Reason = Literal["end", "stop"]


class Writing:
    """A text that grows by tokens until it meets its end.

    It ends at any token of the format's `end_ids`, and where the first of the texts in ``until`` begins. What it ends
    with is no part of it. Where a stop begins does not depend on how it is cut into tokens.

    Args:
        tokenizer: decodes, and says which tokens end a text.
        until: texts that end it; empty ones end nothing.
        prompt: ids that it follows. It is what they and its own ids decode to, without what they decode to.
        skip_special_tokens: leave out special tokens.

    Attributes:
        ids: its tokens, the one that ended it included.
        reason: why it ended, or None as long as it has not.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer | TextFormat,
        until: Sequence[str] = (),
        *,
        prompt: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        form = TextFormat.of(tokenizer)
        self.ids: list[int] = []
        self.reason: Reason | None = None
        self._end_ids = form.end_ids
        self._stream = form.tokenizer.stream(prompt, skip_special_tokens=skip_special_tokens)
        self._until = tuple(stop for stop in until if stop)
        self._certain: list[str] = []
        #: What may be the beginning of a stop.
        self._held_back = ""

    @property
    def ended(self) -> bool:
        """Whether it has met its end."""
        return self.reason is not None

    def add(self, token: int) -> str:
        """Take the next token, unless the text has ended.

        Returns:
            What is now certain to be part of the text, after what earlier calls have returned.
        """
        if self.ended:
            return ""
        self.ids.append(token)
        if token in self._end_ids:
            self.reason = "end"
            return self.rest()
        return self._grow(self._stream.step(token))

    def rest(self) -> str:
        """What is left of the text after what `add` has returned; no token can be added any more."""
        if self.reason == "stop":
            return ""
        # The bytes of a character that was cut short are text too, and may complete a stop.
        return self._grow(self._stream.finish(), last=True)

    def finish(self) -> str:
        """The whole text; no token can be added any more."""
        self.rest()
        return "".join(self._certain)

    def _grow(self, new: str, *, last: bool = False) -> str:
        """What is certain now, of what was held back and what is new; no beginning of a stop is held back at last."""
        text, self._held_back = self._held_back + new, ""
        for place in range(len(text)) if self._until else ():
            if any(text.startswith(stop, place) for stop in self._until):
                self.reason = "stop"
                text = text[:place]
                break
            if not last and any(stop.startswith(text[place:]) for stop in self._until):
                text, self._held_back = text[:place], text[place:]
                break
        self._certain.append(text)
        return text
