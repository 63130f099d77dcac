"""Sampling: repeatable, true to the distribution, and right at the limits of its options."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from case import DEPTH
from mixerzoo import generate
from mixerzoo.errors import MixerzooError
from mixerzoo.inference.sampling import Sampling, check_generator, choose
from zoo import some_tokens


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(temperature=st.sampled_from([0.3, 1.0, 2.0]), top_k=st.none() | st.integers(1, 25), seed=st.integers(0, 99))
def test_sampling_repeats_itself_with_its_seed(temperature: float, top_k: int | None, seed: int) -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(3, 3)
    options: dict[str, Any] = {"max_new_tokens": 5, "temperature": temperature, "top_k": top_k, "top_p": 0.9}
    first = generate(decoder, prompt, generator=seeded(seed), **options)
    torch.rand(3)
    assert torch.equal(generate(decoder, prompt, generator=seeded(seed), **options), first)


def test_seeds_differ_and_the_default_is_zero() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(4, 3)
    sampled = [generate(decoder, prompt, max_new_tokens=9, temperature=2.0, generator=seeded(s)) for s in range(2)]
    assert not torch.equal(*sampled)
    assert torch.equal(generate(decoder, prompt, max_new_tokens=9, temperature=2.0), sampled[0])


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    generate(zoo.shared(DEPTH), some_tokens(1, 3), max_new_tokens=3, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"top_k": 1, "top_p": 0.5}], ids=str)
@given(seed=st.integers(0, 99))
def test_the_narrowest_choice_is_greedy(options: dict[str, Any], seed: int) -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(2, 3, seed=seed)
    greedy = generate(decoder, prompt, max_new_tokens=4)
    sampled = generate(decoder, prompt, max_new_tokens=4, temperature=1.5, generator=seeded(seed), **options)
    assert torch.equal(sampled, greedy)


def test_a_low_temperature_is_greedy() -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(2, 3)
    sampled = generate(decoder, prompt, max_new_tokens=4, temperature=1e-4)
    assert torch.equal(sampled, generate(decoder, prompt, max_new_tokens=4))


@pytest.mark.parametrize("options", [{"top_k": 25}, {"top_k": zoo.VOCAB_SIZE}, {"top_p": 1.0}], ids=str)
def test_the_widest_choice_is_no_choice(options: dict[str, Any]) -> None:
    decoder, prompt = zoo.shared(DEPTH), some_tokens(3, 3)
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


# At the limits.

#: Logits with ties, tokens that are ruled out, and numbers of every size.
ROWS = st.lists(st.sampled_from([0.0, -0.0, 1.0, 3.5, -1e4, 1e30, -1e30, 1e-30, -math.inf]), min_size=2, max_size=9)


def chosen(logits: list[float], seed: int = 0, **options: Any) -> int:
    row = torch.tensor([logits])
    sampling = Sampling(**{"temperature": 1.0, "top_k": None, "top_p": None, **options})
    return int(choose(row, sampling, seeded(seed)))


@given(logits=ROWS, temperature=st.floats(5e-324, 1e-40), seed=st.integers(0, 9))
def test_no_temperature_is_too_small(logits: list[float], temperature: float, seed: int) -> None:
    assume(max(logits) > -math.inf)
    assert logits[chosen(logits, seed, temperature=temperature)] == max(logits)


@given(logits=ROWS, temperature=st.floats(1e60, 1.7e308), seed=st.integers(0, 9))
def test_no_temperature_is_too_large(logits: list[float], temperature: float, seed: int) -> None:
    assume(max(logits) > -math.inf)
    possible = [place for place, value in enumerate(logits) if value > -math.inf]
    rows = torch.tensor([logits]).expand(4000, -1)
    found = choose(rows, Sampling(temperature, None, None), seeded(seed))
    shares = torch.bincount(found, minlength=len(logits)) / 4000
    for place, share in enumerate(shares.tolist()):
        expected = 1 / len(possible) if place in possible else 0
        assert abs(share - expected) <= 5 * (expected * (1 - expected) / 4000) ** 0.5


@given(logits=ROWS, options=st.sampled_from([{"top_k": 1}, {"top_p": 1e-300}, {"top_p": 1e-300, "top_k": 10**18}]))
@pytest.mark.parametrize("temperature", [5e-324, 1.0, 1e300])
def test_the_narrowest_choice_is_greedy_where_tokens_are_equally_likely(
    logits: list[float], options: dict[str, Any], temperature: float
) -> None:
    assume(max(logits) > -math.inf)
    assert chosen(logits, temperature=temperature, **options) == logits.index(max(logits))


@given(logits=ROWS, top_k=st.integers(1, 12), seed=st.integers(0, 9))
def test_top_k_never_takes_more_than_k(logits: list[float], top_k: int, seed: int) -> None:
    assume(max(logits) > -math.inf)
    allowed = sorted(range(len(logits)), key=lambda place: -logits[place])[:top_k]
    assert chosen(logits, seed, temperature=1e300, top_k=top_k) in allowed


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_k": 1}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize("logits", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf], [math.nan] * 3], ids=str)
def test_logits_that_are_not_finite_are_refused(logits: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(MixerzooError, match="logits are not finite"):
        chosen(logits, **options)


def test_one_row_that_is_not_finite_is_enough() -> None:
    with pytest.raises(MixerzooError, match="logits are not finite"):
        choose(torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), Sampling(0.0, None, None), seeded(0))


def test_a_generator_on_another_device_is_refused_where_it_draws() -> None:
    check_generator(torch.Generator(), torch.device("cuda:0"), 0.0)
    check_generator(None, torch.device("cuda:0"), 1.0)
    with pytest.raises(MixerzooError, match=r"generator is on cpu, and the decoder on cuda:0; .*Generator\('cuda:0'\)"):
        check_generator(torch.Generator(), torch.device("cuda:0"), 1.0)
