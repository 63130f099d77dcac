"""YAML 1.2 text to plain values with the line of each, within bounds, and plain values back to text.

The library scans and parses. What a plain word means is the core schema of YAML 1.2 and no more, so that no word is
a date, an octal number or a boolean by surprise. Nothing is built before its size, all aliases written out, is known.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from ruamel.yaml.representer import SafeRepresenter

#: Bytes of a file.
MAX_BYTES = 2**20
#: Keys and values, with all aliases and merge keys written out.
MAX_NODES = 20_000
#: Mappings and lists within each other.
MAX_DEPTH = 40
#: Characters of one text.
MAX_TEXT = 10_000
#: Characters of what might be a tag: the library's time for one grows with the square.
MAX_TAG = 200
#: Digits of one number.
MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
#: What other readers take for a date, or stumble over as one that does not exist.
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")
#: What other readers take for a boolean.
_OLD_BOOL = re.compile(r"y|n|yes|no|on|off", re.IGNORECASE)
#: Text that no reader takes for something else, unless it is a word or a number, which the library knows.
_PLAIN = re.compile(r"[\w./ +-]*")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
#: Line breaks to the library, and to YAML 1.1, but not to YAML 1.2.
_OLD_BREAK = re.compile("[\x85\u2028\u2029]")
#: What might be a tag, to the blank that ends it; each character is looked at once.
_TAG_LIKE = re.compile(r"(?<!\w)!\S*")


class TextError(Exception):
    """Text that is not YAML, or more than is read here.

    Attributes:
        line: counted from 1.
        path: keys from the root to what is wrong.
        message: what is wrong and what would be right.
    """

    def __init__(self, line: int, path: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.line, self.path, self.message = line, path, message


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.

    Attributes:
        line: counted from 1.
        value: of a scalar; else the nodes of a list, or of a mapping each with the line of its key.
        size: keys and values in it, itself included, with all aliases written out.
        depth: mappings and lists within each other, itself included.
    """

    line: int
    value: str | int | float | bool | list[Node] | dict[str, tuple[int, Node]] | None
    size: int = 1
    depth: int = 0

    def construct(self) -> Any:
        """The plain value, of which no part is shared with another."""
        if isinstance(self.value, list):
            return [node.construct() for node in self.value]
        if isinstance(self.value, dict):
            return {key: node.construct() for key, (_, node) in self.value.items()}
        return self.value


def compose(text: str) -> Node:
    """Parse one document.

    Args:
        text: YAML; nothing at all is null.

    Raises:
        TextError: it is not YAML 1.2, has a tag, a repeated key or a key that is not text, or exceeds a bound.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        raise TextError(1, (), f"{len(text):,} characters are too many; at most {MAX_BYTES:,} are read")
    if found := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise TextError(line, (), f"not valid YAML: the character U+{ord(found[0]):04X} must not stand in text")
    if found := _OLD_BREAK.search(text):
        line, code = text.count("\n", 0, found.start()) + 1, f"{ord(found[0]):04X}"
        raise TextError(line, (), f'the line break U+{code} is one to some readers only; write "\\u{code}" in quotes')
    for found in _TAG_LIKE.finditer(text):
        if len(found[0]) > MAX_TAG:
            line = text.count("\n", 0, found.start()) + 1
            raise TextError(
                line, (), f"a '!' with more than {MAX_TAG} characters up to the next blank is not read here"
            )
    composer = _Composer(YAML(typ="safe", pure=True).parse(text))
    try:
        return composer.document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = composer.line if mark is None else mark.line + 1
        raise TextError(line, composer.place, f"not valid YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError, AssertionError) as error:
        # The library converts escapes and directives without a look; what it raises is about this text.
        raise TextError(composer.line, composer.place, f"not valid YAML: {error}") from error


class _Composer:
    """One document out of a stream of events."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node | None] = {}
        self._path: list[str | int] = []
        self._count = 0
        self.line = 1

    @property
    def place(self) -> tuple[str | int, ...]:
        """Keys from the root to what is being read."""
        return tuple(self._path)

    def document(self) -> Node:
        """The only document of the stream."""
        self._next(StreamStartEvent)
        event = self._next()
        if isinstance(event, StreamEndEvent):
            return Node(1, None)
        assert isinstance(event, DocumentStartEvent)
        if event.version is not None and tuple(event.version) != (1, 2):
            raise self._error(f"%YAML {'.'.join(map(str, event.version))} is not read here; YAML 1.2 is")
        root = self._node(self._next())
        self._next(DocumentEndEvent)
        if not isinstance(self._next(), StreamEndEvent):
            raise self._error("a second document begins here; one file is one document")
        return root

    def _next(self, expected: type[Event] = Event) -> Event:
        event = next(self._events)
        assert isinstance(event, expected)
        if event.start_mark is not None:
            self.line = event.start_mark.line + 1
        return event

    def _error(self, message: str, line: int | None = None) -> TextError:
        return TextError(self.line if line is None else line, self.place, message)

    def _node(self, event: Event) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            raise self._error(f"more than {MAX_NODES:,} keys and values; name files by patterns such as '**/*.txt'")
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor)
        assert isinstance(event, NodeEvent)
        anchor = event.anchor
        if anchor is not None:
            self._anchors[anchor] = None
        node = Node(self.line, self._scalar(event)) if isinstance(event, ScalarEvent) else self._collection(event)
        self._check_size(node.size, node.line)
        if node.depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} mappings and lists within each other", node.line)
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _check_size(self, size: int, line: int) -> None:
        if size > MAX_NODES:
            raise self._error(f"more than {MAX_NODES:,} keys and values with the aliases written out", line)

    def _alias(self, anchor: str) -> Node:
        name = anchor[:60]
        if anchor not in self._anchors:
            raise self._error(f"not valid YAML: the alias *{name} has no anchor &{name} before it")
        node = self._anchors[anchor]
        if node is None:
            raise self._error(f"not valid YAML: the alias *{name} stands within &{name}: a value cannot contain itself")
        return node

    def _collection(self, event: Event) -> Node:
        if len(self._path) >= MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} mappings and lists within each other")
        line = self.line
        if isinstance(event, SequenceStartEvent):
            self._check_tag(event.tag, "seq")
            items: list[Node] = []
            size = 1
            while not isinstance(event := self._next(), SequenceEndEvent):
                self._path.append(len(items))
                items.append(self._node(event))
                size += items[-1].size
                self._check_size(size, line)
                self._path.pop()
            return Node(line, items, size, 1 + max((n.depth for n in items), default=0))
        assert isinstance(event, MappingStartEvent)
        self._check_tag(event.tag, "map")
        entries = self._entries()
        nodes = [node for _, node in entries.values()]
        size = 1 + len(nodes) + sum(n.size for n in nodes)
        return Node(line, entries, size, 1 + max((n.depth for n in nodes), default=0))

    def _entries(self) -> dict[str, tuple[int, Node]]:
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        merge_line = None
        size = 1
        while not isinstance(event := self._next(), MappingEndEvent):
            line = self.line
            merge = isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None and not event.tag
            key = self._node(event).value if isinstance(event, ScalarEvent | AliasEvent) else None
            if not isinstance(key, str):
                raise self._error("not valid YAML: a key must be text", line)
            before = merge_line if merge else own[key][0] if key in own else None
            if before is not None:
                raise self._error(
                    f"not valid YAML: the key {key[:60]!r} appears twice: here and in line {before}", line
                )
            self._path.append(key)
            value = self._node(self._next())
            if merge:
                merge_line = line
                for other in self._merged(value, line):
                    for name, entry in other.items():
                        merged.setdefault(name, entry)
            else:
                own[key] = (line, value)
                size += 1 + value.size
                self._check_size(size, line)
            self._path.pop()
        return merged | own

    def _merged(self, node: Node, line: int) -> list[dict[str, tuple[int, Node]]]:
        """The mappings that ``<<`` brings in, the ones that win first."""
        several = node.value if isinstance(node.value, list) else [node]
        found = [each.value for each in several if isinstance(each.value, dict)]
        if len(found) != len(several):
            raise self._error("not valid YAML: << takes a mapping, or a list of them", line)
        return found

    def _check_tag(self, tag: object, own: str) -> None:
        if tag is not None and str(tag) not in ("!", _TAG + own):
            raise self._error(f"not valid YAML: the tag {_short(tag)} is not read here; remove it")

    def _scalar(self, event: ScalarEvent) -> str | int | float | bool | None:
        text: str = event.value
        if len(text) > MAX_TEXT:
            raise self._error(f"a text of {len(text):,} characters is too long; at most {MAX_TEXT:,} are read")
        if found := _UNPRINTABLE.search(text):
            raise self._error(f"not valid YAML: the character U+{ord(found[0]):04X} must not stand in text")
        if event.tag is not None:
            return self._tagged(text, str(event.tag))
        if event.style is not None:
            return text
        if _DATE.fullmatch(text):
            raise self._error(f"{text[:60]} is a date to some readers of YAML and text to others; write '{text[:60]}'")
        for kind in ("null", "bool", "int", "float"):
            if _PATTERNS[kind].fullmatch(text):
                return self._convert(text, kind)
        return text

    def _tagged(self, text: str, tag: str) -> str | int | float | bool | None:
        kind = tag.removeprefix(_TAG)
        if tag == "!" or (kind == "str" and kind != tag):
            return text
        if kind == tag or kind not in _PATTERNS:
            raise self._error(f"not valid YAML: the tag {_short(tag)} is not read here; remove it")
        if not _PATTERNS[kind].fullmatch(text):
            raise self._error(f"not valid YAML: {text[:60]!r} is not what its tag !!{kind} says; remove the tag")
        return self._convert(text, kind)

    def _convert(self, text: str, kind: str) -> str | int | float | bool | None:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if len(text) > MAX_DIGITS:
            raise self._error(f"a number of {len(text):,} digits is too long; at most {MAX_DIGITS} are read")
        if kind == "int":
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        if _INFINITE.fullmatch(text):
            return float(text.replace(".", ""))
        number = float(text)
        if number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise self._error(f"{text} is too small a number: it would be read as 0")
        return number


_PATTERNS = {
    "null": _NULL,
    "bool": _BOOL,
    "int": _INT,
    "float": re.compile(f"(?:{_FLOAT.pattern})|(?:{_INFINITE.pattern})"),
}


def _short(tag: object) -> str:
    text = str(tag)
    return ("!!" + text.removeprefix(_TAG) if text.startswith(_TAG) else text)[:60]


class _Representer(SafeRepresenter):
    """Writes what readers of YAML 1.1 read as the same."""

    def represent_text(self, value: str) -> Any:
        plain = _PLAIN.fullmatch(value) and not _OLD_BOOL.fullmatch(value)
        return self.represent_scalar(_TAG + "str", value, style=None if plain else "'")

    def represent_number(self, value: float) -> Any:
        text = repr(value)
        if text in ("inf", "-inf", "nan"):
            text = text.replace("inf", ".inf").replace("nan", ".nan")
        elif "." not in text:
            text = text.replace("e", ".0e")
        return self.represent_scalar(_TAG + "float", text)


_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(float, _Representer.represent_number)


def from_yaml(text: str) -> Any:
    """The plain value of a YAML document.

    Args:
        text: YAML; nothing at all is null.

    Raises:
        TextError: as `compose`.
    """
    return compose(text).construct()


def to_yaml(value: Any) -> str:
    """Plain values (mappings, lists, text, numbers, true, false, null) as YAML in block style, keys in their order.

    Args:
        value: as JSON could hold it.
    """
    return _written(value, flow=False)


def one_line(value: Any) -> str:
    """The same in flow style, without a line break.

    Args:
        value: as JSON could hold it.
    """
    return _written(value, flow=True).removesuffix("\n").removesuffix("\n...")


def _written(value: Any, *, flow: bool) -> str:
    writer: Any = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = flow
    writer.allow_unicode = True
    writer.width = 10**6
    writer.sort_base_mapping_type_on_output = False
    out = io.StringIO()
    writer.dump(value, out)
    return out.getvalue()
