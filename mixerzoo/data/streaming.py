"""Decodes a token stream as it grows, so that the parts join to what decoding all ids at once gives.

A decoder of the ``tokenizers`` library is a chain of stages, each of which turns a list of strings into another; the
text is the last list, joined. Here each stage is a `_Stage`: it takes the strings one at a time and lets go of what no
later one can change. Most hold nothing back or one string. Those that need the whole text, such as a replacement by
a regular expression after the strings were joined, give all of it at the end.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_UNKNOWN_BYTE = "\ufffd"


class TokenStream:
    """Streaming decode; made by ``TextTokenizer.stream``."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], skip_special_tokens: bool, printed: str) -> None:
        """
        Args:
            tokenizer: from the ``tokenizers`` library.
            prompt: ids before the first step.
            skip_special_tokens: leave out special tokens.
            printed: what ``decode`` gives for the prompt.
        """
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special} if skip_special_tokens else set()
        self._token: Callable[[int], str | None] = tokenizer.id_to_token
        self._skipped = special
        decoder = tokenizer.decoder
        # What pickle would keep of it: the part of tokenizer.json, without the vocabulary's megabytes.
        self._decoder = None if decoder is None else json.loads(decoder.__getstate__())
        self._stages = _stages(self._decoder)
        # Every stage gives a beginning of what it would give for all, so this is a beginning of `printed`.
        known = "".join(self._feed(prompt))
        self._printed = printed[len(known) :]

    def step(self, token: int) -> str:
        """The text that ``token`` completes; ``""`` while it may still change.

        Args:
            token: any integer. One that names no token stands for no text, as in ``decode``.
        """
        return self._new("".join(self._feed([token])))

    def finish(self) -> str:
        """The text held back at the end, such as U+FFFD for a character cut short. The next step begins a new text."""
        text = self._new("".join(_end(self._stages)))
        self._stages, self._printed = _stages(self._decoder), ""
        return text

    def _feed(self, tokens: Iterable[int]) -> Iterator[str]:
        for token in tokens:
            name = self._token(token) if 0 <= token < 2**32 else None
            if name is not None and name not in self._skipped:
                yield from _feed(self._stages, name)

    def _new(self, text: str) -> str:
        """``text`` without what was printed of it before the first step."""
        if not self._printed:
            return text
        length = min(len(text), len(self._printed))
        same = next((i for i in range(length) if text[i] != self._printed[i]), length)
        self._printed = self._printed[same:] if same == len(text) else ""
        return text[same:]


class _Stage:
    """One stage; gives what it takes unless it says otherwise."""

    def feed(self, token: str) -> Iterable[str]:
        """What this string settles."""
        return (token,)

    def end(self) -> Iterable[str]:
        """What was held back."""
        return ()


class _Each(_Stage):
    """Changes each string by itself, the first one in a way of its own."""

    def __init__(self, first: Callable[[str], str], rest: Callable[[str], str]) -> None:
        self._change, self._rest = first, rest

    def feed(self, token: str) -> Iterable[str]:
        changed = self._change(token)
        self._change = self._rest
        return (changed,)


class _LastOne(_Stage):
    """Changes each string by itself, the last one in a way of its own: holds one back."""

    def __init__(self, change: Callable[[str], str], last: Callable[[str], str]) -> None:
        self._change, self._last = change, last
        self._held: str | None = None

    def feed(self, token: str) -> Iterable[str]:
        held, self._held = self._held, token
        return () if held is None else (self._change(held),)

    def end(self) -> Iterable[str]:
        return () if self._held is None else (self._last(self._held),)


class _Distinct(_Stage):
    """Drops a string that is the one before it, and what is nothing once changed."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._before: str | None = None

    def feed(self, token: str) -> Iterable[str]:
        repeated, self._before = token == self._before, token
        changed = "" if repeated else self._change(token)
        return (changed,) if changed else ()


class _ByteRuns(_Stage):
    """Byte tokens become text together with their neighbours, or one U+FFFD each: holds a run of them back."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._run: list[str] = []

    def feed(self, token: str) -> Iterable[str]:
        if _BYTE_TOKEN.fullmatch(token):
            self._run.append(token)
            return ()
        return (*self.end(), token)

    def end(self) -> Iterable[str]:
        run, self._run = self._run, []
        if not run:
            return ()
        text = self._decode(run)
        return text if text == _UNKNOWN_BYTE * len(run) else (text,)


class _Utf8(_Stage):
    """Characters that name bytes become UTF-8: holds a character cut short back."""

    def __init__(self) -> None:
        self._values = {name: value for value, name in enumerate(byte_names())}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: str) -> Iterable[str]:
        values = [self._values.get(character) for character in token]
        # A string with any other character is meant as it stands.
        data = token.encode() if None in values else bytes(value for value in values if value is not None)
        return (self._decoder.decode(data),)

    def end(self) -> Iterable[str]:
        return (self._decoder.decode(b"", final=True),)


class _Trimmed(_Stage):
    """Takes up to so many of a character off the beginning and the end of the whole text."""

    def __init__(self, character: str, start: int, stop: int) -> None:
        self._character, self._start, self._stop = character, start, stop
        self._held = ""

    def feed(self, token: str) -> Iterable[str]:
        while self._start and token:
            if token[0] != self._character:
                self._start = 0
                break
            token = token[1:]
            self._start -= 1
        token = self._held + token
        kept = token.rstrip(self._character)
        kept = token[: max(len(kept), len(token) - self._stop)]
        self._held = token[len(kept) :]
        return (kept,)


class _Substituted(_Stage):
    """Replaces a string in the whole text: holds back what may be the beginning of one."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def feed(self, token: str) -> Iterable[str]:
        *done, rest = (self._held + token).split(self._old)
        longest = min(len(rest), len(self._old) - 1)
        length = next(n for n in range(longest, -1, -1) if self._old.startswith(rest[len(rest) - n :]))
        self._held = rest[len(rest) - length :]
        return (*(part + self._new for part in done), rest[: len(rest) - length])

    def end(self) -> Iterable[str]:
        return (self._held,)


class _Whole(_Stage):
    """Needs all strings at once."""

    def __init__(self, decode: Callable[[list[str]], str], joined: bool) -> None:
        self._decode, self._joined = decode, joined
        self._held: list[str] = []

    def feed(self, token: str) -> Iterable[str]:
        self._held.append(token)
        return ()

    def end(self) -> Iterable[str]:
        return (self._decode(["".join(self._held)] if self._joined else self._held),)


def _feed(stages: Sequence[_Stage], token: str) -> Iterable[str]:
    tokens: Iterable[str] = (token,)
    for stage in stages:
        tokens = [after for before in tokens for after in stage.feed(before)]
    return tokens


def _end(stages: Sequence[_Stage]) -> Iterator[str]:
    for number, stage in enumerate(stages):
        for token in stage.end():
            yield from _feed(stages[number + 1 :], token)


def _stages(decoder: dict[str, Any] | None) -> list[_Stage]:
    """The stages of the ``decoder`` of a tokenizer.json.

    Those after ``Fuse`` or ``ByteLevel`` see one string, the whole text, which comes to them in parts.
    """
    if decoder is None:
        return [_Each(str, " {}".format)]
    stages: list[_Stage] = []
    joined = False
    flat = list(_flat(decoder))
    for place, options in enumerate(flat):
        kind = options["type"]
        if not joined and kind not in _APART:
            # What it does to a list of strings is not known, nor what those after it are given.
            return [*stages, _Whole(_decode({"type": "Sequence", "decoders": flat[place:]}), joined=False)]
        stages.append(_over_text(options) if joined else _APART[kind](options))
        joined = joined or kind in ("Fuse", "ByteLevel")
    return stages


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
    else:
        for inner in decoder["decoders"]:
            yield from _flat(inner)


def _decode(options: dict[str, Any]) -> Callable[[list[str]], str]:
    """What the library's own decoder with these options makes of strings."""
    from tokenizers import Tokenizer, models

    data = json.loads(Tokenizer(models.BPE()).to_str())
    decoder = Tokenizer.from_str(json.dumps(data | {"decoder": options})).decoder
    return lambda tokens: str(decoder.decode(tokens))


def _each(options: dict[str, Any]) -> _Stage:
    decode = _decode(options)
    return _Each(lambda token: decode([token]), lambda token: decode([token]))


def _replace(options: dict[str, Any]) -> _Stage:
    match options["pattern"]:
        case {"String": str(old)} if old:
            new = options["content"]
            return _Each(lambda token: token.replace(old, new), lambda token: token.replace(old, new))
    return _each(options)


def _strip(options: dict[str, Any]) -> _Stage:
    # Not the library's own, which panics at a string that is nothing else than what it takes off.
    def strip(token: str) -> str:
        stage = _Trimmed(options["content"], options["start"], options["stop"])
        return "".join(stage.feed(token))

    return _Each(strip, strip)


def _first(options: dict[str, Any]) -> _Stage:
    decode = _decode(options)
    length = len(decode(["x"]))
    return _Each(lambda token: decode([token]), lambda token: decode(["x", token])[length:])


def _words(options: dict[str, Any]) -> _Stage:
    suffix = options["suffix"]
    return _LastOne(lambda token: token.replace(suffix, " "), lambda token: token.replace(suffix, ""))


def _distinct(options: dict[str, Any]) -> _Stage:
    decode = _decode(options)
    return _Distinct(lambda token: decode([token]))


#: How each kind of stage sees a list of strings.
_APART: dict[str, Callable[[dict[str, Any]], _Stage]] = {
    "ByteFallback": lambda options: _ByteRuns(_decode(options)),
    "ByteLevel": lambda options: _Utf8(),
    "Fuse": lambda options: _Stage(),
    "Strip": _strip,
    "Replace": _replace,
    "WordPiece": _first,
    "Metaspace": _first,
    "BPEDecoder": _words,
    "CTC": _distinct,
}


def _over_text(options: dict[str, Any]) -> _Stage:
    """How a stage sees one string that is the whole text."""
    match options:
        case {"type": "Fuse"}:
            return _Stage()
        case {"type": "Strip", "content": str(character), "start": int(start), "stop": int(stop)}:
            return _Trimmed(character, start, stop)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return _Substituted(old, new)
        case {"type": "BPEDecoder", "suffix": str(suffix)} if suffix:
            return _Substituted(suffix, "")
        case {"type": "Metaspace"}:
            return _each(options)  # character by character
    return _Whole(_decode(options), joined=True)


def byte_names() -> list[str]:
    """The character by which byte-level BPE names each byte value, in the order of the values.

    Printable bytes of Latin-1 name themselves; the others take the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in printable else next(others)) for value in range(256)]
