"""How a checkpoint's texts begin and end: what stands before them, what ends them, how a conversation is written."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.data.chat_template import ChatTemplate, Message, shown
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.tokenizer_files import TOKENIZER_CONFIG, configured_ends, files_of_names, read_object_if_any
from mixerzoo.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NO_TEMPLATE = (
    "the checkpoint has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja); give it a "
    "plain prompt"
)
#: Characters for private use. Two that a conversation lacks mark what it spells while a template is at work.
_MARKS = range(0xF0000, 0x110000)


class TextFormat:
    """The one place that knows a text's beginning and its ends.

    Args:
        tokenizer: of the texts.
        end_ids: ids that end a text, besides the tokenizer's own end of text.
        chat_template: how a conversation is written, if the checkpoint says so.

    Attributes:
        tokenizer: as given.
        prefix: ids that stand before every text: those that the tokenizer itself puts there, such as a BOS token.
        end_ids: every id that ends a text.
        special_tokens: the names of the special tokens and their ids.
        chat_template: as given.
    """

    def __init__(
        self, tokenizer: TextTokenizer, end_ids: Sequence[int] = (), chat_template: ChatTemplate | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.prefix: tuple[int, ...] = tuple(tokenizer.prefix)
        self.end_ids: frozenset[int] = frozenset({tokenizer.end_of_text_id, *end_ids})
        self.special_tokens: Mapping[str, int] = tokenizer.special_tokens
        self.chat_template = chat_template

    @classmethod
    def load(cls, directory: str | Path, tokenizer: TextTokenizer | None = None) -> TextFormat:
        """The format of a checkpoint's texts.

        A text ends at any token that the ``eos_token_id`` of config.json or of generation_config.json names (one, or
        a list), or the ``eos_token`` of tokenizer_config.json or, in the older layout, of special_tokens_map.json.

        Args:
            directory: holds tokenizer.json, and whichever it has of config.json, generation_config.json,
                tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
            tokenizer: in place of the directory's own.

        Raises:
            DataError: a file is missing, damaged, or has a value that cannot be one.
        """
        directory = Path(directory)
        config = read_object_if_any(directory / TOKENIZER_CONFIG)
        tokenizer = tokenizer or TextTokenizer.load(directory)
        ends = configured_ends(directory, tokenizer.vocab_size)
        return cls(tokenizer, ends, ChatTemplate.load(directory, config, _token_names(directory, config)))

    @classmethod
    def of(cls, tokenizer: TextTokenizer | TextFormat) -> TextFormat:
        """A format as it is, or that of a tokenizer alone, whose texts end at its end of text."""
        return tokenizer if isinstance(tokenizer, TextFormat) else cls(tokenizer)

    @property
    def start_id(self) -> int:
        """What stands before a text without context: the last token of the prefix, else the end of the text before."""
        return self.prefix[-1] if self.prefix else self.tokenizer.end_of_text_id

    def is_end(self, token: int) -> bool:
        """Whether a token ends a text."""
        return token in self.end_ids

    def spelled(self, text: str) -> list[str]:
        """The special tokens whose names are in a text, in the order of their ids."""
        return [name for name in self.special_tokens if name and name in text]

    def encode_prompt(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """The ids from which a text goes on, its beginning included.

        Args:
            text: without one, a new text begins.
            special_tokens: take the names of special tokens in the text as those tokens; a text that itself begins
                with the prefix gets no second one. Otherwise text is only ever text.

        Returns:
            At least one id.
        """
        prefix = list(self.prefix)
        if not special_tokens:
            return [*prefix, *self.tokenizer.encode_text(text)] or [self.start_id]
        ids = self._encode_spelled(text)
        return (ids if prefix and ids[: len(prefix)] == prefix else prefix + ids) or [self.start_id]

    def encode_chat(
        self, messages: Sequence[Message], *, special_tokens: bool = False, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation, as the checkpoint's own template writes it.

        What the template writes is taken as transformers takes it: the names of special tokens are those tokens, and
        nothing is put before it.

        Args:
            messages: at least one.
            special_tokens: take names of special tokens within the messages as those tokens too. Otherwise they are
                plain text, so that no message can end itself and speak for another role.
            add_generation_prompt: end with what stands before an answer.

        Raises:
            DataError: the checkpoint has no template, a message is none, or the template refuses the conversation.
        """
        if self.chat_template is None:
            raise DataError(NO_TEMPLATE)
        render = functools.partial(self.chat_template.render, add_generation_prompt=add_generation_prompt)
        text = render(messages)
        if special_tokens or not self.spelled_in(messages):
            ids = self._encode_spelled(text)
        else:
            marks = (mark for mark in map(chr, _MARKS) if mark not in text)
            first, last = next(marks), next(marks)
            ids = self._encode_marked(render(self._marked(messages, first, last)), first, last)
        if not ids:
            raise DataError("the chat template writes nothing for this conversation")
        return ids

    def spelled_in(self, value: Any) -> list[str]:
        """`spelled` for all texts in messages, or in what messages hold."""
        whole = "\n".join(_texts(value))
        return self.spelled(whole)

    # Names of special tokens.

    @functools.cached_property
    def _speller(self) -> Tokenizer:
        """Takes the names of special tokens as those tokens; the tokenizer itself never does."""
        from tokenizers import Tokenizer

        speller = Tokenizer.from_str(self.tokenizer.to_json())
        speller.no_truncation()
        speller.no_padding()
        return speller

    def _encode_spelled(self, text: str) -> list[int]:
        return self._speller.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _names(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self.special_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def _marked(self, value: Any, first: str, last: str) -> Any:
        """Messages with a mark on both sides of every special token's name."""
        if isinstance(value, str):
            return self._names.sub(lambda match: f"{first}{match[0]}{last}", value)
        if isinstance(value, Mapping):
            return {key: self._marked(inner, first, last) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(inner, first, last) for inner in value]
        return value

    def _encode_marked(self, text: str, first: str, last: str) -> list[int]:
        # A template may have cut a name from its marks, so what remains of them goes.
        pieces = re.split(f"{first}({self._names.pattern}){last}|[{first}{last}]", text)
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if piece:
                encode = self.tokenizer.encode if number % 2 else self._encode_spelled
                ids += _encode_inside(encode, piece) if ids else encode(piece)
        return ids


def _encode_inside(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """The ids of a text that does not begin where it begins; many tokenizers put a space before a beginning."""
    line_break = encode("\n")
    ids = encode("\n" + text)
    return ids[len(line_break) :] if ids[: len(line_break)] == line_break else encode(text)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of any depth."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, Mapping):
            pending += inner.values()
        elif isinstance(inner, list | tuple):
            pending += inner


def _token_names(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """What templates can call the special tokens: ``bos_token``, ``eos_token`` and so on."""
    names = {}
    for file, content in files_of_names(directory, config):
        for key, value in content.items():
            # "add_bos_token" and its like are no names.
            if not key.endswith("_token") or key.startswith("add_") or value is None:
                continue
            name = value.get("content") if isinstance(value, dict) else value
            if not isinstance(name, str):
                raise DataError(f"{file}: {key} is {shown(value)}; it must be the name of a token")
            names[key] = name
    return names
