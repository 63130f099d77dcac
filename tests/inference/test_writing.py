"""A text as it is written: its parts are certain, and it ends where it should, however it is cut into tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixerzoo import MixerzooError, TextFormat, TextTokenizer
from mixerzoo.errors import DataError
from mixerzoo.evaluation.tasks.writing import Generation
from mixerzoo.inference.writing import Writing
from text_files import WORDS

BYTES = TextTokenizer.for_bytes()
#: Merges of many lengths, so that stops begin and end within tokens.
BPE = TextTokenizer.train_bpe(["aab abb baa bab <aab> é🤷 \n\n"] * 20 + WORDS, 320)
TEXTS = st.text(st.sampled_from("ab<é🤷\n ")) | st.text(st.characters(codec="utf-8"))


def written(tokenizer: TextTokenizer, text: str, stops: list[str]) -> tuple[Writing, list[str]]:
    writing = Writing(tokenizer, tuple(stops))
    parts = [writing.add(token) for token in tokenizer.encode(text)]
    return writing, [*parts, writing.rest()]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@given(text=TEXTS, stops=st.lists(st.text(st.sampled_from("ab<é🤷\n "), max_size=4), max_size=3))
def test_a_text_ends_where_the_first_stop_begins(tokenizer: TextTokenizer, text: str, stops: list[str]) -> None:
    writing, parts = written(tokenizer, text, stops)
    places = [text.find(stop) for stop in stops if stop and stop in text]
    expected = text[: min(places)] if places else text
    assert "".join(parts) == writing.finish() == writing.finish() == expected
    assert writing.reason == ("stop" if places else None)


@given(text=TEXTS, rest=TEXTS, end=st.sampled_from([256, 7, 300]))
def test_a_text_ends_at_any_end(text: str, rest: str, end: int) -> None:
    writing = Writing(TextFormat(BYTES, end_ids=(7, 300)))
    ids = [token for token in BYTES.encode(text) if token != 7]
    parts = [writing.add(token) for token in (*ids, end, *BYTES.encode(rest))]
    assert "".join(parts) == writing.finish() == BYTES.decode(ids)
    assert (writing.reason, writing.ended, writing.ids) == ("end", True, [*ids, end])


def test_what_may_become_a_stop_is_held_back() -> None:
    writing = Writing(BYTES, ("abc",))
    assert [writing.add(token) for token in b"xabxabd"] == ["x", "", "", "abx", "", "", "abd"]
    assert writing.add(ord("a")) == ""
    # No more comes, so it was none.
    assert (writing.rest(), writing.finish(), writing.reason) == ("a", "xabxabda", None)


def test_a_stop_within_what_could_have_become_a_longer_one() -> None:
    writing = Writing(BYTES, ("ab<", "b"))
    assert [writing.add(token) for token in b"ab"] == ["", ""]
    assert (writing.rest(), writing.finish(), writing.reason) == ("a", "a", "stop")
    writing = Writing(BYTES, ("\n```\n", "```"))
    assert "".join(writing.add(token) for token in (*b"x\n```", 256)) == writing.finish() == "x\n"
    assert writing.reason == "stop"


def test_a_character_cut_short_before_an_end() -> None:
    writing = Writing(BYTES, ("\ufffd!",))
    assert [writing.add(token) for token in (0xF0, 0x9F, 256)] == ["", "", "\ufffd"]
    assert (writing.finish(), writing.reason) == ("\ufffd", "end")


# What a task says.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"until": ["", "a"]}, (("a",), 256, 0.0, None, None)),
        ({"until": "", "do_sample": None}, ((), 256, 0.0, None, None)),
        ({"until": None, "temperature": 0.5, "do_sample": None}, ((), 256, 0.5, None, None)),
        ({"max_completion_tokens": 7.0}, ((), 7, 0.0, None, None)),
        ({"max_gen_toks": 5, "max_tokens": 7}, ((), 5, 0.0, None, None)),
    ],
    ids=str,
)
def test_options_of_a_task(options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert Generation.of(options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": [5]}, "until 5; only a text can end it"),
        ({"until": {"a": 1}}, "only a text can end it"),
        ({"max_gen_toks": "many"}, "of 'many' tokens, which is no whole number"),
        ({"max_gen_toks": float("inf")}, "of inf tokens, which is no whole number"),
        ({"max_gen_toks": -1}, "max_new_tokens is -1"),
        ({"temperature": "hot"}, "temperature of 'hot'"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0"),
        ({"top_k": 0.5}, r"top_k is 0\.5; it must be a whole number"),
        ({"top_p": 2}, "top_p is 2"),
    ],
    ids=str,
)
def test_options_that_no_text_can_be_written_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MixerzooError, match=message):
        Generation.of(options)


def test_unknown_options_are_named() -> None:
    with pytest.raises(DataError, match=re.escape("num_beams=4")):
        Generation.of({"num_beams": 4})
