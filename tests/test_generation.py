"""Generation: every token is the one that the full forward would choose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from mixerzoo import Decoder, generate, stream
from mixerzoo.errors import CacheError, MixerzooError
from zoo import Case, some_tokens

every_case = pytest.mark.parametrize("case", zoo.CASES, ids=str)
DECODER = Case("depth_attention", {"stride": 1})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def by_full_forwards(decoder: Decoder, tokens: Tensor, num_new: int) -> Tensor:
    """Greedy, without a cache."""
    for _ in range(num_new):
        tokens = torch.cat([tokens, decoder(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens


# Greedy.


@every_case
@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_greedy_is_the_argmax_of_full_forwards(case: Case, max_length: int | None) -> None:
    decoder, prompt = zoo.shared(case), some_tokens(2, 3)
    cache = decoder.new_cache(2, max_length)
    generated = generate(decoder, prompt, max_new_tokens=6, cache=cache)
    assert torch.equal(generated, by_full_forwards(decoder, prompt, 6))
    # All but the last token went through the cache.
    assert cache.length == 8


def test_no_new_tokens() -> None:
    prompt = some_tokens(2, 3)
    assert torch.equal(generate(zoo.shared(DECODER), prompt, max_new_tokens=0), prompt)
    assert list(stream(zoo.shared(DECODER), prompt, max_new_tokens=0)) == []


def test_a_row_of_a_left_padded_batch_is_the_row_alone() -> None:
    decoder, prompt, padding = zoo.shared(DECODER), some_tokens(3, 5), [0, 2, 4]
    together = generate(decoder, prompt, max_new_tokens=6, left_padding=torch.tensor(padding))
    for row, pad in enumerate(padding):
        alone = generate(decoder, prompt[row : row + 1, pad:], max_new_tokens=6)
        assert torch.equal(together[row, pad:], alone[0])


def test_generation_goes_on_from_a_cache() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 4)
    whole = generate(decoder, prompt, max_new_tokens=8)
    cache = decoder.new_cache(1)
    first = generate(decoder, prompt, max_new_tokens=3, cache=cache)
    assert torch.equal(first, whole[:, :7])
    # The last token has not gone through the cache yet: it begins the next prompt.
    assert torch.equal(generate(decoder, first[:, -1:], max_new_tokens=5, cache=cache), whole[:, 6:])


@pytest.mark.parametrize("max_length", [None, 12], ids=["growing", "fixed"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_cache_can_be_used_after_generation(max_length: int | None, grad: bool) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 4)
    cache = decoder.new_cache(1, max_length)
    generated = generate(decoder, prompt, max_new_tokens=4, cache=cache)
    with torch.set_grad_enabled(grad):
        logits = decoder(generated[:, -1:], cache)
        zoo.assert_close(logits[:, -1], decoder(generated)[:, -1])
        cache.crop(4)
        logits = decoder(generated[:, 4:], cache)
        zoo.assert_close(logits, decoder(generated)[:, 4:])


def test_what_is_generated_can_be_trained_on() -> None:
    decoder = zoo.make(DECODER)
    generated = generate(decoder, some_tokens(1, 4), max_new_tokens=3)
    decoder(generated).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_generation_leaves_the_mode_of_gradients_alone() -> None:
    steps = stream(zoo.shared(DECODER), some_tokens(1, 2), max_new_tokens=2)
    next(steps)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    steps.close()


# Sampling.


@given(temperature=st.sampled_from([0.3, 1.0, 2.0]), top_k=st.none() | st.integers(1, 25), seed=st.integers(0, 99))
def test_sampling_repeats_itself_with_its_seed(temperature: float, top_k: int | None, seed: int) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(3, 3)
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": temperature, "top_k": top_k, "top_p": 0.9}
    first = generate(decoder, prompt, generator=seeded(seed), **options)
    torch.rand(3)
    assert torch.equal(generate(decoder, prompt, generator=seeded(seed), **options), first)


def test_seeds_differ_and_the_default_is_zero() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(4, 3)
    sampled = [generate(decoder, prompt, max_new_tokens=9, temperature=2.0, generator=seeded(s)) for s in range(2)]
    assert not torch.equal(*sampled)
    assert torch.equal(generate(decoder, prompt, max_new_tokens=9, temperature=2.0), sampled[0])


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    generate(zoo.shared(DECODER), some_tokens(1, 3), max_new_tokens=3, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"top_k": 1, "top_p": 0.5}], ids=str)
@given(seed=st.integers(0, 99))
def test_the_narrowest_choice_is_greedy(options: dict[str, Any], seed: int) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(2, 3, seed=seed)
    greedy = generate(decoder, prompt, max_new_tokens=4)
    sampled = generate(decoder, prompt, max_new_tokens=4, temperature=1.5, generator=seeded(seed), **options)
    assert torch.equal(sampled, greedy)


def test_a_low_temperature_is_greedy() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(2, 3)
    sampled = generate(decoder, prompt, max_new_tokens=4, temperature=1e-4)
    assert torch.equal(sampled, generate(decoder, prompt, max_new_tokens=4))


@pytest.mark.parametrize("options", [{"top_k": 25}, {"top_k": zoo.VOCAB_SIZE}, {"top_p": 1.0}], ids=str)
def test_the_widest_choice_is_no_choice(options: dict[str, Any]) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(3, 3)
    plain = generate(decoder, prompt, max_new_tokens=6, temperature=1.5, generator=seeded(1))
    assert torch.equal(
        generate(decoder, prompt, max_new_tokens=6, temperature=1.5, generator=seeded(1), **options), plain
    )


class Fixed(torch.nn.Module):
    """Stands in for a decoder: gives every row the same logits.

    Args:
        probabilities: of the next token.
    """

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log()
        self.lm_head = torch.nn.Linear(1, len(probabilities))
        self.shape = SimpleNamespace(vocab_size=len(probabilities))

    def forward(self, tokens: Tensor, cache: object, **_: Any) -> Tensor:
        return self.logits.expand(tokens.size(0), 1, -1)

    def new_cache(self, batch_size: int) -> None:
        """There is nothing to remember."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        # The fewest tokens that reach p: the one that crosses it is in.
        ({"top_p": 0.39}, [1, 0, 0, 0]),
        ({"top_p": 0.41}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
    ],
    ids=str,
)
def test_samples_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    num_samples = 20000
    prompt = torch.zeros(num_samples, 1, dtype=torch.long)
    sampled: Tensor = generate(
        Fixed([0.4, 0.3, 0.2, 0.1]),  # type: ignore[arg-type]
        prompt,
        max_new_tokens=1,
        generator=seeded(7),
        **{"temperature": 1.0, **options},
    )[:, -1]
    shares = torch.bincount(sampled, minlength=4) / num_samples
    for share, probability in zip(shares.tolist(), expected, strict=True):
        # Four standard deviations; a token that is ruled out never comes.
        assert abs(share - probability) <= 4 * (probability * (1 - probability) / num_samples) ** 0.5


# The end.


def test_rows_end_on_their_own() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(4, 3)
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
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 3)
    end = int(generate(decoder, prompt, max_new_tokens=1)[0, -1])
    cache = decoder.new_cache(1)
    assert generate(decoder, prompt, max_new_tokens=50, end_of_text=end, cache=cache).size(1) == 4
    assert cache.length == 3


def test_an_end_in_the_prompt_ends_nothing() -> None:
    decoder = zoo.shared(DECODER)
    whole = (generate(decoder, some_tokens(1, 3, seed=seed), max_new_tokens=4) for seed in range(99))
    # The first prompt whose last token does not come again.
    free = next(tokens for tokens in whole if tokens[0, 2] not in tokens[0, 3:])
    assert torch.equal(generate(decoder, free[:, :3], max_new_tokens=4, end_of_text=int(free[0, 2])), free)


# Stream.


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_k": 7, "top_p": 0.9}], ids=str)
def test_stream_yields_what_generate_returns(options: dict[str, Any]) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(2, 3)
    steps = list(stream(decoder, prompt, max_new_tokens=6, **options))
    assert all(step.shape == (2,) and step.dtype == torch.long for step in steps)
    whole = generate(decoder, prompt, max_new_tokens=6, **options)
    assert torch.equal(torch.stack(steps, dim=1), whole[:, 3:])
    assert torch.equal(whole[:, :3], prompt)


def test_stream_works_step_by_step() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 3)
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
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"the prompt must be \[batch, at least one token\], got \[3\]"),
        ({"tokens": torch.zeros(2, 0, dtype=torch.long)}, r"the prompt must be .* got \[2, 0\]"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must not be negative"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range(function: Any, changes: dict[str, Any], message: str) -> None:
    arguments = {"tokens": some_tokens(1, 3), "max_new_tokens": 2, "temperature": 1.0, **changes}
    with pytest.raises(MixerzooError, match=message):
        function(zoo.shared(DECODER), **arguments)


def test_a_cache_that_is_too_short() -> None:
    decoder = zoo.shared(DECODER)
    with pytest.raises(CacheError, match="1 new tokens after 5 do not fit in a cache of max_length 5"):
        generate(decoder, some_tokens(1, 3), max_new_tokens=4, cache=decoder.new_cache(1, 5))


def test_a_cache_of_another_batch_size() -> None:
    decoder = zoo.shared(DECODER)
    with pytest.raises(CacheError, match="a batch of 2 rows does not fit in a cache of 3"):
        generate(decoder, some_tokens(2, 3), max_new_tokens=1, cache=decoder.new_cache(3))
