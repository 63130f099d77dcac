"""Questions about the Python standard library's own source text, made the same way every time.

They are drawn from documents that every recipe with the source ``stdlib`` and a ``validation_fraction`` of at
least `HELD_OUT` holds out, so no such decoder has been trained on them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import NamedTuple, TypeVar

from mixerzoo.data import StdlibSource, read_documents, split_documents
from mixerzoo.errors import DataError

#: Share of the library's documents that are asked about: the default ``validation_fraction`` of a recipe.
HELD_OUT = 0.05
#: How many questions a task has at most.
NUM_QUESTIONS = 400
NUM_CHOICES = 4
#: Characters of context before a question, and of a document that is scored, at most; both are whole lines.
CONTEXT = 600
EXCERPT = 8000

_POOL = 2 * NUM_QUESTIONS
# A line to be told by its content. The four are of one class of lengths: of the lengths around the right one's own,
# the right one would be the middle.
_LENGTHS = range(24, 72)
_LENGTH_CLASS = 6
_SHORTEST_CONTEXT = 120
_NAME = re.compile(r"(?<=\S )[A-Za-z_]\w{4,}\b", re.ASCII)
_WORD = re.compile(r"\w+")


class NextLine(NamedTuple):
    """Which of four lines comes next?

    Attributes:
        context: whole lines, each with its line break.
        choices: lines as they would follow it; the wrong ones are of other documents, indented like the right one.
        answer: index of the right one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


class LastName(NamedTuple):
    """Which name comes next, of those that the context has shown?

    Attributes:
        context: text that ends before the space before the name.
        name: at least five characters; it stands further up in the context, and not in its last line.
    """

    context: str
    name: str


Question = TypeVar("Question", NextLine, LastName)


@cache
def held_out_documents() -> tuple[str, ...]:
    """The documents that are asked about.

    Raises:
        DataError: this Python has no source files.
    """
    split = split_documents(read_documents(StdlibSource()), HELD_OUT, lambda stage, done, total: None)
    return tuple(sorted(split.side("validation")))


def next_lines(documents: Sequence[str]) -> list[NextLine]:
    """Multiple choice: the line that follows, and three of about that length from other documents.

    Args:
        documents: the same ones give the same questions, in any order.

    Raises:
        DataError: they yield no question.
    """
    # Right and wrong lines come from the same ones: where some documents gave more of one kind, to know their style
    # would answer.
    lines = _by_turns(sorted({line for document in documents for line in _lines(document)}, key=_rank))[:_POOL]
    questions = (_next_line(line, lines) for line in lines)
    return _some(list(islice(filter(None, questions), NUM_QUESTIONS)), "lines")


def last_names(documents: Sequence[str]) -> list[LastName]:
    """Cloze: the name that comes next, where the context has shown it before.

    Args:
        documents: the same ones give the same questions, in any order.

    Raises:
        DataError: they yield no question.
    """
    names = sorted({name for document in documents for name in _names(document)}, key=_rank)
    return _some([LastName(name.context, name.text) for name in _by_turns(names)[:NUM_QUESTIONS]], "names")


def excerpts(documents: Sequence[str]) -> list[str]:
    """The beginning of each document, in whole lines where it is not one long line.

    Args:
        documents: the same ones give the same excerpts, in any order.
    """
    return [d if len(d) <= EXCERPT else d[: d.rfind("\n", 0, EXCERPT) + 1 or EXCERPT] for d in sorted(set(documents))]


class _Place(NamedTuple):
    """What could be asked for: the text that follows a context in a document."""

    document: str
    context: str
    text: str


def _lines(document: str) -> Iterator[_Place]:
    start = 0
    for line in document.splitlines(keepends=True):
        context = _context(document, start)
        if len(line.strip()) in _LENGTHS and len(context) >= _SHORTEST_CONTEXT and line.strip() not in context:
            yield _Place(document, context, line.rstrip())
        start += len(line)


def _names(document: str) -> Iterator[_Place]:
    for name in _NAME.finditer(document):
        line = document.rfind("\n", 0, name.start()) + 1
        above, before = _context(document, line), document[line : name.start() - 1]
        # A name that its own line holds already would only be copied from nearby.
        if len(above) >= _SHORTEST_CONTEXT and name[0] in _WORD.findall(above) and name[0] not in _WORD.findall(before):
            yield _Place(document, above + before, name[0])


def _context(document: str, end: int) -> str:
    """The whole lines among the characters before ``end``, where a line begins."""
    begin = end - CONTEXT
    return document[document.find("\n", begin - 1, end) + 1 : end] if begin > 0 else document[:end]


def _next_line(right: _Place, lines: Sequence[_Place]) -> NextLine | None:
    """A question, or None where too few lines resemble the right one."""
    text = right.text.lstrip()
    indent = right.text[: len(right.text) - len(text)]
    number = int.from_bytes(_rank(right)[:8], "big")
    wrong: list[str] = []
    for step in range(len(lines)):
        other = lines[(number + step) % len(lines)]
        candidate = other.text.lstrip()
        if len(candidate) // _LENGTH_CLASS != len(text) // _LENGTH_CLASS or other.document == right.document:
            continue
        if candidate not in right.document and candidate not in wrong:
            wrong.append(candidate)
        if len(wrong) == NUM_CHOICES - 1:
            answer = number // len(lines) % NUM_CHOICES
            choices = (*wrong[:answer], text, *wrong[answer:])
            return NextLine(right.context, tuple(indent + choice for choice in choices), answer)
    return None


def _by_turns(places: Sequence[_Place]) -> list[_Place]:
    """One of each document, then another of each, and so on: a few large ones never fill a task."""
    seen: dict[str, int] = {}
    turns = []
    for place in places:
        seen[place.document] = turn = seen.get(place.document, 0) + 1
        turns.append(turn)
    return [places[number] for number in sorted(range(len(places)), key=turns.__getitem__)]


def _rank(place: _Place) -> bytes:
    return hashlib.sha256("\0".join((place.context, place.text)).encode()).digest()


def _some(questions: list[Question], kind: str) -> list[Question]:
    if not questions:
        raise DataError(f"the documents hold no {kind} to ask for: they are too few or too short")
    return questions
