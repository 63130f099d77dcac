"""Prompts: ids in lists and arrays, texts, and what is neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from case import DEPTH
from mixerzoo import Decoder, TextFormat, TextTokenizer, generate, stream
from mixerzoo.errors import MixerzooError
from mixerzoo.inference.sampling import end_ids
from zoo import some_tokens

BYTES = TextTokenizer.for_bytes()
WORDS = ["", "a", "the fox", "é🤷", "<|endoftext|>", "some longer text\n"]


@pytest.fixture(scope="module")
def talker() -> Decoder:
    return zoo.make(DEPTH, vocab_size=257)


INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")


@pytest.mark.parametrize("dtype", [getattr(torch, name) for name in INTEGERS], ids=INTEGERS)
def test_ids_can_be_of_any_integer_type_and_in_lists(dtype: torch.dtype) -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(2, 3)
    expected = generate(decoder, prompt, max_new_tokens=4)
    assert torch.equal(generate(decoder, prompt.to(dtype), max_new_tokens=4), expected)
    assert torch.equal(generate(decoder, prompt.tolist(), max_new_tokens=4), expected)
    assert torch.equal(generate(decoder, prompt[0].tolist(), max_new_tokens=4), expected[:1])
    assert torch.equal(generate(decoder, tuple(prompt[0].tolist()), max_new_tokens=4), expected[:1])
    steps = list(stream(decoder, prompt.tolist(), max_new_tokens=4))
    assert torch.equal(torch.stack(steps, dim=1), expected[:, 3:])


def test_numbers_of_numpy_are_numbers() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(1, 3)
    plain = generate(decoder, prompt, max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.5, end_of_text=7)
    options = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(4),
        "top_p": np.float64(0.5),
        "end_of_text": np.int32(7),
    }
    ids = [np.int64(token) for token in prompt[0].tolist()]
    assert torch.equal(generate(decoder, ids, max_new_tokens=np.int8(3), **options), plain)


@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("tokenizer", [BYTES, TextFormat(BYTES, end_ids=[10, 32])], ids=["tokenizer", "format"])
def test_a_text_gives_a_text(text: str, tokenizer: Any, talker: Decoder) -> None:
    form = TextFormat.of(tokenizer)
    ids = form.encode_prompt(text)
    whole = generate(talker, [ids], max_new_tokens=30, end_of_text=sorted(form.end_ids))[0].tolist()
    ended = next((place for place in range(len(ids), len(whole)) if whole[place] in form.end_ids), len(whole))
    found = generate(talker, text, max_new_tokens=30, tokenizer=tokenizer)
    assert found == BYTES.decode(whole[:ended])
    parts = list(stream(talker, text, max_new_tokens=30, tokenizer=tokenizer))
    assert text + "".join(parts) == found
    assert all(parts)


@given(texts=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
def test_texts_of_any_lengths_are_each_what_they_are_alone(texts: list[str], talker: Decoder) -> None:
    found = generate(talker, texts, max_new_tokens=8, tokenizer=BYTES)
    assert found == [generate(talker, text, max_new_tokens=8, tokenizer=BYTES) for text in texts]


def test_a_tokenizer_says_where_rows_of_ids_end() -> None:
    decoder, prompt = zoo.make(DEPTH, vocab_size=257), some_tokens(2, 3)
    free = generate(decoder, prompt, max_new_tokens=6)
    form = TextFormat(BYTES, end_ids=free[:, 4].tolist())
    assert torch.equal(
        generate(decoder, prompt, max_new_tokens=6, tokenizer=form),
        generate(decoder, prompt, max_new_tokens=6, end_of_text=[256, *free[:, 4].tolist()]),
    )


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ("text", {}, "the prompt is text, so it takes a tokenizer"),
        ("text", {"tokenizer": "gpt2"}, "the tokenizer is str; it must be"),
        ("text", {"tokenizer": BYTES, "left_padding": torch.tensor([0])}, "left_padding goes with ids"),
        (5, {}, "the prompt is int; it must be ids"),
        (None, {}, "the prompt is NoneType; it must be ids"),
        ([], {}, r"at least one token\], got \[1, 0\]"),
        ([[1, 2], [3]], {}, "rows have 1 to 2 ids; pad the shorter"),
        ([1, 2.5], {}, r"has 2\.5 where an id should be"),
        ([True], {}, "has True where an id should be"),
        ([1, -1], {}, "has the id -1; the decoder's vocabulary has the ids 0 to 18"),
        ([10**30], {}, "has the id 10+; the decoder's vocabulary"),
        (torch.tensor([[1, 29]]), {}, "has the id 29; the decoder's vocabulary"),
        *((torch.tensor([[1, 29]], dtype=getattr(torch, kind)), {}, "has the id 29; the dec") for kind in INTEGERS),
        (torch.tensor([[1, 2**64 - 1]], dtype=torch.uint64), {}, "the decoder's vocabulary has the ids 0 to 18"),
        (torch.tensor([[1.0]]), {}, r"the prompt is torch\.float32; ids are whole numbers"),
        (torch.tensor([[True]]), {}, r"the prompt is torch\.bool; ids are whole numbers"),
        (np.array([1.0]), {}, r"the prompt is float64; ids are whole numbers"),
        (np.array(["a"]), {}, r"the prompt is <U1; ids are whole numbers"),
        (torch.tensor(1), {}, r"must be .*got .."),
        (torch.zeros(0, 3, dtype=torch.long), {}, "must be .*got .0, 3."),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_prompts_that_are_none(function: Any, tokens: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MixerzooError, match=message):
        function(zoo.shared(DEPTH), tokens, max_new_tokens=2, **options)


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize("decoder", [None, torch.nn.Linear(1, 1), "runs/quickstart"], ids=str)
def test_decoders_that_are_none(function: Any, decoder: Any) -> None:
    with pytest.raises(
        MixerzooError, match=rf"the decoder is {type(decoder).__name__}; it must be a mixerzoo\.Decoder"
    ):
        function(decoder, [1], max_new_tokens=1)


def test_one_row_and_arrays() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(1, 3)
    plain = generate(decoder, prompt, max_new_tokens=3)
    array = prompt.numpy()
    for tokens in (prompt[0], array, array[0], array.astype(np.uint16), array[:, ::-1].copy()[:, ::-1]):
        assert torch.equal(generate(decoder, tokens, max_new_tokens=3), plain)


def test_lists_of_texts_and_other_things() -> None:
    for tokens, message in ((["a", 1], "of texts and of something else"), (["a"], "it takes a tokenizer")):
        with pytest.raises(MixerzooError, match=message):
            generate(zoo.shared(DEPTH), tokens, max_new_tokens=1)  # type: ignore[call-overload]
    with pytest.raises(MixerzooError, match="a tokenizer has no use"):
        stream(zoo.shared(DEPTH), [1], max_new_tokens=1, tokenizer=BYTES)  # type: ignore[call-overload]


# Beside them.


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"left_padding": 1}, r"left_padding is 1; it must be 2 whole numbers, one for each row of the prompt"),
    ({"left_padding": [1]}, r"left_padding is \[1\]; it must be 2 whole numbers"),
    ({"left_padding": [0, True]}, r"left_padding is \[0, True\]; it must be 2 whole numbers"),
    ({"left_padding": torch.tensor([0.0, 1.0])}, r"left_padding is tensor.*; it must be 2 whole numbers"),
    ({"left_padding": torch.tensor([[0, 1]])}, r"left_padding is tensor.*; it must be 2 whole numbers"),
    ({"left_padding": [3, 0]}, r"left_padding is \[3, 0\]; in rows of 3 tokens it must be from 0 to 2"),
    ({"left_padding": torch.tensor([0, -1])}, r"left_padding is \[0, -1\]; in rows of 3 tokens"),
    (
        {"generator": 3},
        r"generator is 3; it must be a torch\.Generator, as torch\.Generator\('cpu'\)\.manual_seed\(0\)",
    ),
    ({"cache": {}}, r"the cache is dict; it must be a mixerzoo\.KVCache, as decoder\.new_cache gives"),
]


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_options_of_a_wrong_type(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MixerzooError, match=message):
        function(zoo.shared(DEPTH), some_tokens(2, 3), max_new_tokens=2, **options)


def test_padding_can_be_given_as_ids_can() -> None:
    decoder, prompt, padding = zoo.shared(DEPTH), some_tokens(2, 3), torch.tensor([2, 0])
    plain = generate(decoder, prompt, max_new_tokens=3, left_padding=padding)
    assert not torch.equal(plain, generate(decoder, prompt, max_new_tokens=3))
    for counts in ([2, 0], (2, np.int8(0)), padding.to(torch.uint8), padding.numpy()):
        assert torch.equal(generate(decoder, prompt, max_new_tokens=3, left_padding=counts), plain)
        steps = stream(decoder, prompt, max_new_tokens=3, left_padding=counts)
        assert torch.equal(torch.stack(list(steps), dim=1), plain[:, 3:])
    # What came before may be padding, all of it.
    cache = decoder.new_cache(2)
    decoder(prompt[:, :1], cache, left_padding=padding)
    assert torch.equal(
        generate(decoder, prompt[:, 1:], max_new_tokens=3, left_padding=[2, 0], cache=cache), plain[:, 1:]
    )


@pytest.mark.parametrize(
    "ends", [[3, 5], {3, 5}, torch.tensor([3, 5]), np.array([3, 5]), {3: 0, 5: 0}.keys(), range(3, 6, 2)], ids=type
)
def test_ends_can_be_given_as_ids_can(ends: Any) -> None:
    assert sorted(end_ids(ends, 9)) == [3, 5]
    assert end_ids(torch.tensor(3), 9) == end_ids(np.int16(3), 9) == end_ids(3, 9) == [3]
