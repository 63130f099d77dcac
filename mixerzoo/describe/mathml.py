"""Equations in plain characters, as cards write them, in mathematical type: MathML, which browsers show as it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from html import escape

#: At least two letters; a name of an option may hold a low line.
_WORD = r"[A-Za-z]+(?:[-'’/][A-Za-z]+)+|[A-Za-z]{2,}_[A-Za-z]{3,}|[A-Za-z]{2,}"
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<word>{_WORD})|(?P<number>\d+(?:\.\d+)?)|(?P<letter>[^\W\d_][\u0300-\u036f]*)"
    r"|(?P<sign>.[\u0300-\u036f]*)"
)
#: What makes of a word before it a name in the formula and not a part of a sentence.
_OPERATOR = re.compile(r"[(\[_^·⊙⊗/⌋⌉]|\s?(?:[=←+−<>≤≥∈·⊙⊗×/](?:\s|$))")
_SENTENCE = re.compile(r"\s[A-Za-z]{2}")
_OPENING, _CLOSING = "([{⟨⌊⌈", ")]}⟩⌋⌉"
_LIMITS = {"Σ": "∑", "Π": "∏"}


def mathml(equation: str) -> str:
    """An equation as HTML, a ``div`` for each line.

    ``_`` and ``^`` lower and raise what follows: a letter, a number, a word or what braces hold. Words that stand
    outside brackets and beside no operator are text, at which a line may break. Whatever else is written stays.

    Args:
        equation: in the characters of `MixerCard.equation`.
    """
    lines = (f'<div class="equation-line">{_Line(line).html()}</div>' for line in equation.splitlines() if line.strip())
    return f'<div class="equation">{"".join(lines)}</div>'


class _Line:
    """One line, read from left to right."""

    def __init__(self, text: str) -> None:
        text = unicodedata.normalize("NFD", text.strip())
        self._tokens = [(str(found.lastgroup), found[0], found.end()) for found in _TOKEN.finditer(text)]
        self._text = text
        self._at = 0

    def html(self) -> str:
        """Formulas, and the words between them."""
        parts: list[str] = []
        formula: list[str] = []

        def close() -> None:
            if formula:
                parts.append(f'<math displaystyle="true">{"".join(formula)}</math>')
                formula.clear()

        while self._at < len(self._tokens):
            kind, token, _ = self._tokens[self._at]
            if kind == "space" and len(token) > 1:
                close()
                parts.append('<span class="equation-gap"> </span>')
                self._at += 1
            elif self._is_prose():
                close()
                self._at += 1
                if self._peek()[1] in (",", ";", ":"):
                    token += self._peek()[1]
                    self._at += 1
                parts.append(f" {escape(token)} ")
            else:
                formula.extend(self._item())
        close()
        return re.sub(r" +", " ", "".join(parts)).strip()

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self._at + ahead
        return self._tokens[at][:2] if at < len(self._tokens) else ("", "")

    def _is_prose(self) -> bool:
        kind, token, end = self._tokens[self._at]
        if kind == "letter" and token == "a":  # the article
            return bool(_SENTENCE.match(self._text, end))
        return kind == "word" and not _OPERATOR.match(self._text, end)

    def _item(self) -> Iterator[str]:
        """The next atom with what is below and above it; a bracket with all that it holds."""
        kind, token = self._peek()
        if kind == "space":
            if self._peek(-1)[0] == self._peek(1)[0] == "number":  # a row of a matrix
                yield '<mspace width="0.5em"/>'
            self._at += 1
            return
        if kind == "sign" and token in _OPENING:
            yield f"<mrow>{''.join(self._bracket())}</mrow>"
            return
        base = self._atom()
        lower, upper = self._scripts()
        names = ("munder", "mover", "munderover") if token in _LIMITS else ("msub", "msup", "msubsup")
        if lower and upper:
            yield f"<{names[2]}>{base}{lower}{upper}</{names[2]}>"
        elif lower or upper:
            name = names[0] if lower else names[1]
            yield f"<{name}>{base}{lower or upper}</{name}>"
        else:
            yield base

    def _bracket(self) -> Iterator[str]:
        yield _sign(self._peek()[1])
        self._at += 1
        while self._at < len(self._tokens):
            kind, token = self._peek()
            if kind == "sign" and token in _CLOSING:
                self._at += 1
                base, (lower, upper) = _sign(token), self._scripts()
                yield f"<msubsup>{base}{lower or '<mrow/>'}{upper or '<mrow/>'}</msubsup>" if lower or upper else base
                return
            yield from self._inner()

    def _inner(self) -> Iterator[str]:
        """An item where words cannot stand outside the formula."""
        kind, token = self._peek()
        if kind == "word" and self._is_prose():
            before = self._at > 0 and self._tokens[self._at - 1][0] == "space"
            self._at += 1
            after = self._peek()[0] == "space"
            # Spaces at the ends of a text are dropped, these are not.
            yield f"<mtext>{chr(160) * before}{escape(token)}{chr(160) * after}</mtext>"
        else:
            yield from self._item()

    def _atom(self) -> str:
        kind, token = self._peek()
        self._at += 1
        if token == "√" and self._at < len(self._tokens):
            return f"<msqrt>{''.join(self._item())}</msqrt>"
        if kind in ("letter", "word"):
            return _letter(token)
        return f"<mn>{token}</mn>" if kind == "number" else _sign(token)

    def _scripts(self) -> tuple[str, str]:
        """What stands below and above the atom that was just read."""
        found = {"_": "", "^": ""}
        while (mark := self._peek()[1]) in ("_", "^") and self._peek(1)[0] not in ("", "space"):
            self._at += 1
            found[mark] += self._script()
        while self._peek()[1] == "ᵀ":
            self._at += 1
            found["^"] += "<mi>⊤</mi>"
        return (
            f"<mrow>{found['_']}</mrow>" if found["_"] else "",
            f"<mrow>{found['^']}</mrow>" if found["^"] else "",
        )

    def _script(self) -> str:
        kind, token = self._peek()
        if token != "{":
            if kind == "word" and len(token) == 2:  # two indices
                self._at += 1
                return "".join(map(_letter, token))
            return self._atom()
        self._at += 1
        inside: list[str] = []
        while self._at < len(self._tokens) and self._peek()[1] != "}":
            inside.extend(self._inner())
        self._at += 1
        return "".join(inside)


def _letter(token: str) -> str:
    """A letter, perhaps with an accent, or a name; of a sum and a product the large sign."""
    if token in _LIMITS:
        return f'<mo movablelimits="false">{_LIMITS[token]}</mo>'
    accents = {"\u0304": "¯", "\u0303": "~", "\u0302": "^"}
    mark = token[-1]
    if mark in accents:
        return f'<mover accent="true"><mi>{token[:-1]}</mi><mo stretchy="false">{accents[mark]}</mo></mover>'
    return f"<mi>{escape(unicodedata.normalize('NFC', token))}</mi>"


def _sign(token: str) -> str:
    token = unicodedata.normalize("NFC", token)
    fence = ' stretchy="false"' if token in _OPENING + _CLOSING + "|" else ""
    return f"<mo{fence}>{'′' if token == chr(39) else escape(token)}</mo>"
