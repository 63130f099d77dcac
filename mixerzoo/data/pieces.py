"""Cuts long text so that encoding it takes little memory, at places where the ids are those of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from mixerzoo.data.tokenizer_files import in_words

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer

SIZE = 1 << 18
"""Characters in a piece, if there is a place to cut: its encoding takes about 50 MB."""

# Between the end of a word and a line break or a space before a word: byte-level BPE cuts there anyway.
_WORD_ENDS = re.compile(r"(?<=[^\W_])(?=\n)|(?<=[A-Za-z])(?= [A-Za-z])")
_ANYWHERE = re.compile(r"(?s)(?<=.)(?=.)")
# The same places within a token: a letter, or what byte-level BPE calls its last byte, and a line break or space.
_ACROSS = {
    "\n": re.compile("(?:(?![_\u0100-\u0121])[\\w\u00a1-\u00ff])[\n\u010a]"),
    " ": re.compile("[A-Za-z][ \u2581\u0120]"),
}
# Characters on both sides of a cut that are encoded to see what it does.
_NEAR = 64
_TRIES = 20


class Piece(NamedTuple):
    """A part of a text.

    Attributes:
        text: the part; all of them join to the text.
        encoded: what to give to the tokenizer, which may put a space of its own before it.
    """

    text: str
    encoded: str


def words_apart(text: str, size: int = SIZE) -> Iterator[str]:
    """Cuts a text between words, as is right for byte-level BPE with the usual pattern.

    Args:
        text: any text.
        size: at least 1; a part ends at the first such place after this many characters.
    """
    start = 0
    while found := _WORD_ENDS.search(text, start + size):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


class Cutter:
    """Knows where text can be cut for one tokenizer.

    A cut is right where no token can reach across: the tokenizer's own splitting parts the words there, or it merges
    (BPE) and its vocabulary has no token with such a place inside. Whatever else a tokenizer does around the place, as
    with a space that it puts before every text, shows in the ids of the text nearby, which are compared. A tokenizer
    with added tokens that reach across such places is given the whole text: which of them it finds may depend on all
    that stands before.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """
        Args:
            tokenizer: from the ``tokenizers`` library.
        """
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        # Special tokens are not looked for in text.
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        self._near = _NEAR + 2 * max((len(token.content) for token in added), default=0)
        self._whole = any(map(_reaches_across, added))
        merges = type(tokenizer.model).__name__ == "BPE"
        self._never_across = {
            place: merges and not any(map(across.search, vocabulary)) for place, across in _ACROSS.items()
        }
        self._single = merges and max(map(len, vocabulary), default=2) == 1
        self._places = _ANYWHERE if self._single else _WORD_ENDS

    def pieces(self, text: str, size: int = SIZE) -> Iterator[Piece]:
        """Parts of a text whose ids, one after the other, are those of the whole text.

        Args:
            text: any text.
            size: at least 1; a part ends at the first good place after this many characters. Where there is none, as
                in text without spaces and line breaks, it is longer.
        """
        start = at = 0
        left_out = 0  # of the current piece's beginning
        while not self._whole and (at := at + size) < len(text):
            for found in islice(self._places.finditer(text, at), _TRIES):
                cut = found.start()
                skipped = self._skipped(text, cut)
                if skipped is not None:
                    yield Piece(text[start:cut], text[start + left_out : cut])
                    start, at, left_out = cut, cut, skipped
                    break
        yield Piece(text[start:], text[start + left_out :])

    def _skipped(self, text: str, cut: int) -> int | None:
        """How many characters to leave out after a cut, so that nothing changes; None where none would do."""
        whole = self._encode(text[max(0, cut - self._near) : cut + self._near])
        left = self._encode(text[max(0, cut - self._near) : cut]).ids
        if whole.ids[: len(left)] != left or not 0 < len(left) < len(whole.ids):
            return None
        words = whole.word_ids
        apart = self._single or self._never_across.get(text[cut], False)
        if not apart and words[len(left) - 1] == words[len(left)]:
            return None
        for skipped in (0, 1) if text[cut] == " " else (0,):
            if whole.ids[len(left) :] == self._encode(text[cut + skipped : cut + self._near]).ids:
                return skipped
        return None

    def _encode(self, text: str) -> Encoding:
        with in_words("the tokenizer cannot encode this text"):
            return self._tokenizer.encode(text, add_special_tokens=False)


def _reaches_across(token: AddedToken) -> bool:
    """Whether an added token holds a place where text is cut, or takes the space beside it along."""
    content = token.content
    return (
        any(across.search(content) is not None for across in _ACROSS.values())
        or (token.lstrip and content[:1].isalpha())
        or (token.rstrip and content[-1:].isalnum())
    )
