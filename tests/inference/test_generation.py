"""Generation: every token is the one that the full forward would choose."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from mixerzoo import Decoder, TextFormat, TextTokenizer, generate, stream
from mixerzoo.errors import CacheError, MixerzooError
from mixerzoo.inference.sampling import Sampling, check_generator, choose, end_ids
from zoo import ZooCase, some_tokens

every_case = zoo.parametrized(zoo.CASES)
DECODER = ZooCase("depth_attention", {"stride": 1})
#: Slots, and a tail beside them.
some_cases = pytest.mark.parametrize("case", [DECODER, ZooCase("smear")], ids=str)


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
def test_greedy_is_the_argmax_of_full_forwards(case: ZooCase, max_length: int | None) -> None:
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


# Lists and texts.

BYTES = TextTokenizer.for_bytes()
WORDS = ["", "a", "the fox", "é🤷", "<|endoftext|>", "some longer text\n"]


@pytest.fixture(scope="module")
def talker() -> Decoder:
    return zoo.make(DECODER, vocab_size=257)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_ids_can_be_of_any_integer_type_and_in_lists(dtype: torch.dtype) -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(2, 3)
    expected = generate(decoder, prompt, max_new_tokens=4)
    assert torch.equal(generate(decoder, prompt.to(dtype), max_new_tokens=4), expected)
    assert torch.equal(generate(decoder, prompt.tolist(), max_new_tokens=4), expected)
    assert torch.equal(generate(decoder, prompt[0].tolist(), max_new_tokens=4), expected[:1])
    assert torch.equal(generate(decoder, tuple(prompt[0].tolist()), max_new_tokens=4), expected[:1])
    steps = list(stream(decoder, prompt.tolist(), max_new_tokens=4))
    assert torch.equal(torch.stack(steps, dim=1), expected[:, 3:])


def test_numbers_of_numpy_are_numbers() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 3)
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
    decoder, prompt = zoo.make(DECODER, vocab_size=257), some_tokens(2, 3)
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
        function(zoo.shared(DECODER), tokens, max_new_tokens=2, **options)


@pytest.mark.parametrize("function", [generate, stream])
@pytest.mark.parametrize("decoder", [None, torch.nn.Linear(1, 1), "runs/quickstart"], ids=str)
def test_decoders_that_are_none(function: Any, decoder: Any) -> None:
    with pytest.raises(
        MixerzooError, match=rf"the decoder is {type(decoder).__name__}; it must be a mixerzoo\.Decoder"
    ):
        function(decoder, [1], max_new_tokens=1)


def test_one_row_and_arrays() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(1, 3)
    plain = generate(decoder, prompt, max_new_tokens=3)
    array = prompt.numpy()
    for tokens in (prompt[0], array, array[0], array.astype(np.uint16), array[:, ::-1].copy()[:, ::-1]):
        assert torch.equal(generate(decoder, tokens, max_new_tokens=3), plain)


def test_lists_of_texts_and_other_things() -> None:
    for tokens, message in ((["a", 1], "of texts and of something else"), (["a"], "it takes a tokenizer")):
        with pytest.raises(MixerzooError, match=message):
            generate(zoo.shared(DECODER), tokens, max_new_tokens=1)  # type: ignore[call-overload]
    with pytest.raises(MixerzooError, match="a tokenizer has no use"):
        stream(zoo.shared(DECODER), [1], max_new_tokens=1, tokenizer=BYTES)  # type: ignore[call-overload]


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
        function(zoo.shared(DECODER), some_tokens(2, 3), max_new_tokens=2, **options)


def test_padding_can_be_given_as_ids_can() -> None:
    decoder, prompt, padding = zoo.shared(DECODER), some_tokens(2, 3), torch.tensor([2, 0])
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


def test_a_generator_on_another_device_is_refused_where_it_draws() -> None:
    check_generator(torch.Generator(), torch.device("cuda:0"), 0.0)
    check_generator(None, torch.device("cuda:0"), 1.0)
    with pytest.raises(MixerzooError, match=r"generator is on cpu, and the decoder on cuda:0; .*Generator\('cuda:0'\)"):
        check_generator(torch.Generator(), torch.device("cuda:0"), 1.0)


# The end.


@pytest.mark.parametrize(
    "ends", [[3, 5], {3, 5}, torch.tensor([3, 5]), np.array([3, 5]), {3: 0, 5: 0}.keys(), range(3, 6, 2)], ids=type
)
def test_ends_can_be_given_as_ids_can(ends: Any) -> None:
    assert sorted(end_ids(ends, 9)) == [3, 5]
    assert end_ids(torch.tensor(3), 9) == end_ids(np.int16(3), 9) == end_ids(3, 9) == [3]


def test_rows_end_at_any_of_several_ends() -> None:
    decoder, prompt = zoo.shared(DECODER), some_tokens(4, 3)
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
        generate(zoo.shared(DECODER), some_tokens(1, 3), max_new_tokens=2, end_of_text=end)


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
        function(zoo.shared(DECODER), **arguments)


def test_a_cache_that_is_too_short() -> None:
    decoder = zoo.shared(DECODER)
    with pytest.raises(CacheError, match="1 new tokens after 5 do not fit in a cache of max_length 5"):
        generate(decoder, some_tokens(1, 3), max_new_tokens=4, cache=decoder.new_cache(1, 5))


def test_a_cache_of_another_batch_size() -> None:
    decoder = zoo.shared(DECODER)
    with pytest.raises(CacheError, match="a batch of 2 rows does not fit in a cache of 3"):
        generate(decoder, some_tokens(2, 3), max_new_tokens=1, cache=decoder.new_cache(3))
