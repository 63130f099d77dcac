"""The questions of the local tasks: the same ones in any order, about text that is held out, without shortcuts."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from mixerzoo.data import StdlibSource, read_documents, split_documents
from mixerzoo.errors import DataError
from mixerzoo.evaluation.tasks.questions import (
    CONTEXT,
    NUM_CHOICES,
    NUM_QUESTIONS,
    excerpts,
    held_out_documents,
    last_names,
    next_lines,
)


def test_questions_are_the_same_in_any_order():
    documents = held_out_documents()
    for make in (next_lines, last_names, excerpts):
        assert make(documents) == make(documents[::-1]) == make((*documents, *documents))


def test_questions_are_about_text_that_recipes_hold_out():
    held_out = set(held_out_documents())
    for source in (StdlibSource(), StdlibSource(max_bytes=2_000_000)):
        split = split_documents(read_documents(source), 0.05, lambda *_: None)
        assert set(split.side("validation")) <= held_out
        assert not held_out & set(split.side("train"))
    for context in (question.context for make in (next_lines, last_names) for question in make(tuple(held_out))):
        assert any(context in document for document in held_out)


def test_the_next_line_is_the_one_that_follows():
    documents = held_out_documents()
    questions = next_lines(documents)
    assert len(questions) == NUM_QUESTIONS
    for question in questions:
        homes = [d for d in documents if question.context + question.choices[question.answer] + "\n" in d]
        assert homes
        assert len(set(question.choices)) == NUM_CHOICES
        assert 120 <= len(question.context) <= CONTEXT
        for number, choice in enumerate(question.choices):
            assert number == question.answer or not any(choice.strip() in home for home in homes)


def test_no_shortcut_finds_the_next_line():
    questions = next_lines(held_out_documents())
    letters = Counter("".join(held_out_documents()))

    def frequent(text: str) -> float:
        return sum(math.log(letters[letter]) for letter in text)

    def share(rule) -> float:
        right = [max(range(NUM_CHOICES), key=lambda i, q=q: rule(q.choices[i])) == q.answer for q in questions]
        return sum(right) / len(right)

    for rule in (len, lambda text: -len(text), frequent, lambda text: frequent(text) / len(text)):
        assert 0.15 < share(rule) < 0.35
    places = Counter(question.answer for question in questions)
    assert all(70 <= places[place] <= 130 for place in range(NUM_CHOICES))


def test_the_last_name_was_shown_before():
    documents = held_out_documents()
    questions = last_names(documents)
    assert len(questions) == NUM_QUESTIONS
    for question in questions:
        assert any(f"{question.context} {question.name}" in document for document in documents)
        above, line = question.context.rsplit("\n", 1)
        assert re.search(rf"\b{question.name}\b", above)
        assert not re.search(rf"\b{question.name}\b", line)


def test_few_documents_yield_what_they_can_or_say_that_they_cannot():
    with pytest.raises(DataError, match="too few or too short"):
        next_lines(["short\n"])
    with pytest.raises(DataError, match="too few or too short"):
        last_names([])
    assert excerpts(["b" * 9000, "a\n"]) == ["a\n", "b" * 8000]
