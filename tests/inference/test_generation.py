"""Generation: every token is the one that the full forward would choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zoo
from case import DEPTH
from mixerzoo import Decoder, generate, stream
from mixerzoo.errors import CacheError, MixerzooError
from zoo import ZooCase, some_tokens

every_case = zoo.parametrized(zoo.CASES)
#: Slots, and a tail beside them.
some_cases = pytest.mark.parametrize("case", [DEPTH, ZooCase("smear")], ids=str)


@torch.no_grad()
def by_full_forwards(decoder: Decoder, tokens: Tensor, num_new: int) -> Tensor:
    """Greedy, without a cache."""
    for _ in range(num_new):
        tokens = torch.cat([tokens, decoder(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens


# Greedy.


@every_case
@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_greedy_is_the_argmax_of_full_forwards(case: ZooCase, max_length: int | None) -> None:
    decoder, prompt = zoo.shared(case), some_tokens(2, 3)
    cache = decoder.new_cache(2, max_length)
    generated = generate(decoder, prompt, max_new_tokens=6, cache=cache)
    assert torch.equal(generated, by_full_forwards(decoder, prompt, 6))
    # All but the last token went through the cache.
    assert cache.length == 8


def test_no_new_tokens() -> None:
    prompt = some_tokens(2, 3)
    assert torch.equal(generate(zoo.shared(DEPTH), prompt, max_new_tokens=0), prompt)
    assert list(stream(zoo.shared(DEPTH), prompt, max_new_tokens=0)) == []


@some_cases
def test_a_row_of_a_left_padded_batch_is_the_row_alone(case: ZooCase) -> None:
    decoder, prompt, padding = zoo.shared(case), some_tokens(3, 5), [0, 2, 4]
    together = generate(decoder, prompt, max_new_tokens=6, left_padding=torch.tensor(padding))
    for row, pad in enumerate(padding):
        alone = generate(decoder, prompt[row : row + 1, pad:], max_new_tokens=6)
        assert torch.equal(together[row, pad:], alone[0])


@some_cases
def test_generation_goes_on_from_a_cache(case: ZooCase) -> None:
    decoder, prompt = zoo.shared(case), some_tokens(1, 4)
    whole = generate(decoder, prompt, max_new_tokens=8)
    cache = decoder.new_cache(1)
    first = generate(decoder, prompt, max_new_tokens=3, cache=cache)
    assert torch.equal(first, whole[:, :7])
    # The last token has not gone through the cache yet: it begins the next prompt.
    assert torch.equal(generate(decoder, first[:, -1:], max_new_tokens=5, cache=cache), whole[:, 6:])


@pytest.mark.parametrize("max_length", [None, 12], ids=["growing", "fixed"])
@pytest.mark.parametrize("grad", [False, True])
@some_cases
def test_a_cache_can_be_used_after_generation(case: ZooCase, max_length: int | None, grad: bool) -> None:
    decoder, prompt = zoo.shared(case), some_tokens(1, 4)
    cache = decoder.new_cache(1, max_length, max_rollback=4)
    generated = generate(decoder, prompt, max_new_tokens=4, cache=cache)
    with torch.set_grad_enabled(grad):
        logits = decoder(generated[:, -1:], cache)
        zoo.assert_close(logits[:, -1], decoder(generated)[:, -1])
        cache.crop(4)
        logits = decoder(generated[:, 4:], cache)
        zoo.assert_close(logits, decoder(generated)[:, 4:])


def test_what_is_generated_can_be_trained_on() -> None:
    decoder = zoo.make(DEPTH)
    generated = generate(decoder, some_tokens(1, 4), max_new_tokens=3)
    decoder(generated).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_generation_leaves_the_mode_of_gradients_alone() -> None:
    steps = stream(zoo.shared(DEPTH), some_tokens(1, 2), max_new_tokens=2)
    next(steps)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    steps.close()


# The end.


def test_rows_end_at_any_of_several_ends() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(4, 3)
    free = generate(decoder, prompt, max_new_tokens=10)
    ends = sorted({int(free[0, 5]), int(free[1, 6])})
    stopped = generate(decoder, prompt, max_new_tokens=10, end_of_text=ends)
    for row in range(4):
        new = free[row, 3:].tolist()
        length = next((place + 1 for place, token in enumerate(new) if token in ends), len(new))
        assert stopped[row, 3 : 3 + length].tolist() == new[:length]
        # What follows an end is that end.
        assert set(stopped[row, 3 + length :].tolist()) <= {new[length - 1]}


@pytest.mark.parametrize(
    "end",
    [-1, 29, True, 1.0, [3, None], "a", b"a", {3: 4}, torch.tensor([3, 19]), torch.tensor(1.0), np.array([True])],
    ids=str,
)
def test_an_end_that_is_no_id(end: Any) -> None:
    with pytest.raises(MixerzooError, match=r"end_of_text is .*; it must be a token.s id, or several, from 0 to 18"):
        generate(zoo.shared(DEPTH), some_tokens(1, 3), max_new_tokens=2, end_of_text=end)


def test_rows_end_on_their_own() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(4, 3)
    free = generate(decoder, prompt, max_new_tokens=10)
    end = int(free[0, 5])
    stopped = generate(decoder, prompt, max_new_tokens=10, end_of_text=end)
    lengths = []
    for row in range(4):
        new = free[row, 3:].tolist()
        length = new.index(end) + 1 if end in new else 10
        lengths.append(length)
        assert stopped[row, 3 : 3 + length].tolist() == new[:length]
        assert set(stopped[row, 3 + length :].tolist()) <= {end}
    assert min(lengths) <= 3
    assert stopped.size(1) == 3 + max(lengths)


def test_generation_stops_when_every_row_has_ended() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(1, 3)
    end = int(generate(decoder, prompt, max_new_tokens=1)[0, -1])
    cache = decoder.new_cache(1)
    assert generate(decoder, prompt, max_new_tokens=50, end_of_text=end, cache=cache).size(1) == 4
    assert cache.length == 3


def test_an_end_in_the_prompt_ends_nothing() -> None:
    decoder = zoo.shared(DEPTH)
    whole = (generate(decoder, some_tokens(1, 3, seed=seed), max_new_tokens=4) for seed in range(99))
    # The first prompt whose last token does not come again.
    free = next(tokens for tokens in whole if tokens[0, 2] not in tokens[0, 3:])
    assert torch.equal(generate(decoder, free[:, :3], max_new_tokens=4, end_of_text=int(free[0, 2])), free)


# Stream.


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_k": 7, "top_p": 0.9}], ids=str)
def test_stream_yields_what_generate_returns(options: dict[str, Any]) -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(2, 3)
    steps = list(stream(decoder, prompt, max_new_tokens=6, **options))
    assert all(step.shape == (2,) and step.dtype == torch.long for step in steps)
    whole = generate(decoder, prompt, max_new_tokens=6, **options)
    assert torch.equal(torch.stack(steps, dim=1), whole[:, 3:])
    assert torch.equal(whole[:, :3], prompt)


def test_stream_works_step_by_step() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(1, 3)
    cache = decoder.new_cache(1)
    steps = stream(decoder, prompt, max_new_tokens=6, cache=cache)
    assert cache.length == 0
    for expected in (3, 4, 5):
        next(steps)
        assert cache.length == expected


# Refusals: at the call, before the first step.


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(1, 1, 3, dtype=torch.long)}, r"must be \[batch, at least one token\], got \[1, 1, 3\]"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.long)}, r"the prompt must be .* got \[2, 0\]"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must not be negative"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 10**400}, "temperature is 10+; it must be 0"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"temperature": None}, "temperature is None; it must be a number"),
        ({"max_new_tokens": 10**9}, "max_new_tokens is 1000000000; it must be at most 16777216"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5; it must be a whole number"),
        ({"top_k": 1.5}, r"top_k is 1\.5; it must be a whole number"),
        ({"top_k": True}, "top_k is True; it must be a whole number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range(function: Any, changes: dict[str, Any], message: str) -> None:
    arguments = {"tokens": some_tokens(1, 3), "max_new_tokens": 2, "temperature": 1.0, **changes}
    with pytest.raises(MixerzooError, match=message):
        function(zoo.shared(DEPTH), **arguments)


def test_a_cache_that_is_too_short() -> None:
    decoder = zoo.shared(DEPTH)
    with pytest.raises(CacheError, match="1 new tokens after 5 do not fit in a cache of max_length 5"):
        generate(decoder, some_tokens(1, 3), max_new_tokens=4, cache=decoder.new_cache(1, 5))


def test_a_cache_of_another_batch_size() -> None:
    decoder = zoo.shared(DEPTH)
    with pytest.raises(CacheError, match="a batch of 2 rows does not fit in a cache of 3"):
        generate(decoder, some_tokens(2, 3), max_new_tokens=1, cache=decoder.new_cache(3))
