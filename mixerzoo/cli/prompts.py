"""What `mixerzoo generate` is to go on from: a text, a conversation, or a file of many."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixerzoo.errors import DataError, did_you_mean
from mixerzoo.files import MOST_LEVELS, deep_line, is_deep

if TYPE_CHECKING:
    from mixerzoo.data.chat_template import Message

#: Bytes of a file of prompts; that many tokens no decoder has positions for.
MOST_BYTES = 1 << 26


class Prompt(NamedTuple):
    """One text to go on from.

    Attributes:
        where: what errors call it.
        text: it, or what the user says in a conversation of one turn.
        messages: a whole conversation in its place.
    """

    where: str
    text: str = ""
    messages: tuple[Message, ...] | None = None

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Its messages."""
        return ({"role": "user", "content": self.text},) if self.messages is None else self.messages


def read_prompts(text: str | None, file: str | None, *, jsonl: bool, chat: bool) -> list[Prompt]:
    """What the options say.

    Args:
        text: the value of ``--prompt``.
        file: that of ``--prompt-file``.
        jsonl: whether the file has a prompt a line.
        chat: whether prompts are conversations; then a ``.json`` file is a list of messages, and a ``.jsonl`` file
            without ``jsonl`` has a message a line.

    Returns:
        At least one.

    Raises:
        DataError: says where something is that cannot be read, or is no prompt.
    """
    if text is not None and file is not None:
        raise DataError("give either --prompt or --prompt-file, not both")
    if jsonl and file is None:
        raise DataError("--jsonl is about --prompt-file, which is not given")
    if file is None:
        # Bytes of the command line that are not in its encoding arrive as lone surrogates.
        return [Prompt("--prompt", _utf8(text or "", "the prompt"))]
    content = _read(file)
    if jsonl:
        return [_prompt(value, where, chat) for where, value in _lines(content, file)]
    suffix = Path(file).suffix if chat else ""
    if suffix == ".jsonl":
        return [Prompt(file, messages=tuple(_message(value, where) for where, value in _lines(content, file)))]
    if suffix == ".json":
        return [_conversation(_json(content, file), file)]
    return [Prompt(file, content)]


def _read(file: str) -> str:
    """The text of a file, or of standard input."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
                # A pipe that nobody writes to is empty; opened in the ordinary way, it would keep us waiting.
                os.set_blocking(stream.fileno(), True)
                data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: the prompt cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise DataError(f"{file}: the prompt cannot be read: it is larger than {MOST_BYTES >> 20} MiB")
    if not data:
        raise DataError(f"{file}: the file is empty; to begin a new text, leave --prompt-file out")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: the prompt cannot be read: not valid UTF-8 at byte {error.start}") from error


def _lines(content: str, file: str) -> Iterator[tuple[str, Any]]:
    """The JSON values of the lines, blank ones left out, and where they stand."""
    found = False
    for number, line in enumerate(content.removeprefix("\ufeff").split("\n"), start=1):
        if line.strip():
            found = True
            yield f"{file}:{number}", _json(line, file, number)
    if not found:
        raise DataError(f"{file}: it has blank lines only")


def _json(text: str, file: str, line: int | None = None) -> Any:
    """The value of a whole file, or of one line of it."""
    try:
        value = json.loads(text.removeprefix("\ufeff"))
        too_deep = is_deep(value)
    except ValueError as error:
        raise DataError(f"{file if line is None else f'{file}:{line}'}: not JSON: {error}") from error
    except RecursionError:
        too_deep = True
    if too_deep:
        raise DataError(f"{file}:{line or deep_line(text)}: JSON that is nested more than {MOST_LEVELS} levels deep")
    return value


def _prompt(value: Any, where: str, chat: bool) -> Prompt:
    """A line of ``--jsonl``."""
    if isinstance(value, str):
        return Prompt(where, _utf8(value, f"{where}: the prompt"))
    keys = ("prompt", "messages") if chat else ("prompt",)
    if chat and isinstance(value, list):
        return _conversation(value, where)
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected a text, or an object such as {{"prompt": "…"}}, got {_shown(value)}')
    unknown = [key for key in value if key not in keys]
    if unknown:
        hint = "; conversations take --chat" if "messages" in unknown else did_you_mean(unknown[0], keys)
        raise DataError(f"{where}: unknown key {unknown[0]!r}{hint}; known keys: {', '.join(keys)}")
    if len(value) != 1:
        raise DataError(f"{where}: it must have one of the keys {' and '.join(keys)}")
    if "messages" in value:
        return _conversation(value["messages"], where)
    if not isinstance(value["prompt"], str):
        raise DataError(f"{where}: 'prompt' must be a text, got {_shown(value['prompt'])}")
    return Prompt(where, _utf8(value["prompt"], f"{where}: 'prompt'"))


def _conversation(value: Any, where: str) -> Prompt:
    if isinstance(value, dict) and list(value) == ["messages"]:
        value = value["messages"]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, got {_shown(value)}")
    return Prompt(where, messages=tuple(_message(m, f"{where}: message {n}") for n, m in enumerate(value, start=1)))


def _message(value: Any, where: str) -> Message:
    from mixerzoo.data.chat_template import check_message

    message = check_message(value, where)
    _utf8(json.dumps(message, ensure_ascii=False), where)
    return message


def _utf8(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid UTF-8: it has half of a surrogate pair at {error.start}") from error
    return text


def _shown(value: Any) -> str:
    from mixerzoo.data.chat_template import shown

    return shown(value)
