"""The template by which a checkpoint's makers turn a conversation into one text, as transformers renders it.

A template is a program of whoever made the checkpoint, in Jinja's language. It runs in Jinja's sandbox, where it can
change nothing and reach nothing but the messages and the names of the special tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.data.files import check_text
from mixerzoo.errors import DataError
from mixerzoo.files import MOST_LEVELS, is_deep, read_bytes

if TYPE_CHECKING:
    from jinja2 import Environment, Template

#: One turn: its ``role`` ("system", "user", "assistant") and its ``content``, and whatever else the template reads.
Message = Mapping[str, Any]

#: Where transformers keeps a template, and further ones by name; they go before tokenizer_config.json.
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
_DEFAULT = "default"
# Far more than any template has.
_MOST_BYTES = 32 << 20


class ChatTemplate:
    """A conversation's text.

    Args:
        source: in Jinja's language.
        where: what errors call it.
        variables: what it can name besides the messages, such as ``bos_token``.
    """

    def __init__(self, source: str, where: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._where = where
        self._variables = dict(variables)

    @classmethod
    def load(cls, directory: Path, config: Mapping[str, Any], variables: Mapping[str, str]) -> ChatTemplate | None:
        """The template of a checkpoint, or None where it has none.

        Args:
            directory: of the checkpoint.
            config: the content of its tokenizer_config.json.
            variables: as for the class.

        Raises:
            DataError: a file cannot be read or does not say which template is meant.
        """
        where, sources = _in_files(directory)
        if not sources:
            where = f"{directory / 'tokenizer_config.json'}: chat_template"
            sources = _in_config(config.get("chat_template"), where)
        if not sources:
            return None
        if _DEFAULT not in sources:
            raise DataError(f"{where}: none of its templates is named {_DEFAULT!r}: {', '.join(sorted(sources))}")
        return cls(sources[_DEFAULT], where, variables)

    @functools.cached_property
    def _template(self) -> Template:
        with self._failing("cannot be read"):
            return _environment().from_string(self.source)

    @contextmanager
    def _failing(self, how: str) -> Iterator[None]:
        """Make a `DataError` of whatever a template raises: it is a program, and not ours."""
        try:
            yield
        except Exception as error:  # a template raises what it likes
            line = getattr(error, "lineno", None)
            place = self._where if line is None else f"{self._where}, line {line}"
            raise DataError(f"{place}: the chat template {how}: {_reason(error)}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Args:
            messages: at least one.
            add_generation_prompt: end with what stands before an answer.

        Raises:
            DataError: a message is none, or the template cannot be read or refuses the conversation.
        """
        if not messages:
            raise DataError("a conversation needs at least one message")
        for number, message in enumerate(messages, start=1):
            check_message(message, f"message {number}")
        template = self._template
        # Keys without a value are left out, as transformers does: most templates would write "None".
        turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
        with self._failing("does not take this conversation"):
            text: str = template.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        return check_text(text, f"{self._where}: the text of this conversation")


def check_message(message: object, where: str) -> Message:
    """``message`` if it is one.

    Args:
        message: what a file or a caller gave.
        where: names it in the error.

    Raises:
        DataError: it is no mapping with a ``role``, or its ``content`` is neither text nor a list of parts, or it is
            nested too deep.
    """
    if not isinstance(message, Mapping):
        raise DataError(f'{where}: expected an object such as {{"role": "user", "content": "…"}}, got {shown(message)}')
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where}: 'role' must be a text such as \"user\", got {shown(message.get('role'))}")
    if not isinstance(message.get("content"), str | list | None):
        raise DataError(f"{where}: 'content' must be a text, got {shown(message.get('content'))}")
    if is_deep(message):
        raise DataError(f"{where}: nested more than {MOST_LEVELS} levels deep")
    return message


def _in_files(directory: Path) -> tuple[str, dict[str, str]]:
    """Templates by name that have files of their own, and what errors call them."""
    single, folder = directory / TEMPLATE_FILE, directory / TEMPLATE_FOLDER
    files = {_DEFAULT: single} if single.exists() else {}
    files |= {path.name.removesuffix(".jinja"): path for path in sorted(folder.glob("*.jinja"))}
    found = {}
    for name, path in files.items():
        if not path.is_file():
            raise DataError(f"{path}: is no file, and should hold a chat template")
        try:
            found[name] = read_bytes(path, _MOST_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: the chat template cannot be read: {error}") from error
    return str(single if _DEFAULT in files else folder), found


def _in_config(value: object, where: str) -> dict[str, str]:
    """Templates by name, as tokenizer_config.json gives one or a list of them."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {_DEFAULT: check_text(value, where)}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list):
        raise DataError(f"{where} must be a text or a list of named templates, got {shown(value)}")
    found = {}
    for number, entry in enumerate(value, start=1):
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))):
            raise DataError(f"{where}: entry {number} must have the texts 'name' and 'template', got {shown(entry)}")
        found[entry["name"]] = check_text(entry["template"], f"{where}: {entry['name']}")
    return found


@functools.cache
def _environment() -> Environment:
    """Jinja's sandbox with what transformers gives to templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %} … {% endgeneration %}``, which marks for training what the model has said."""

        def __init__(self, environment: Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own would write <, > and & as HTML has them.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def shown(value: object) -> str:
    """A value as JSON writes it, cut short if need be."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value).__name__)
    return text if len(text) <= 60 else f"{text[:57]}…"
