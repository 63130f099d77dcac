"""Steps as one graph, and prompts in parts: the same tokens, one graph for all steps and calls, bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from case import DEPTH
from mixerzoo import Decoder, ModelConfig, generate, load_registry, stream
from mixerzoo.benchmark.memory import measured_peak
from mixerzoo.errors import CacheError, MixerzooError
from mixerzoo.inference import steps
from mixerzoo.inference.sampling import Sampling, choose
from mixerzoo.model import backends
from zoo import ZooCase, some_tokens


def _forget() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    steps._compiled.cache_clear()
    steps._idle.clear()


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.getLogger("torch.__trace").disabled = True
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, **options, backend="eager"))
    _forget()
    yield
    _forget()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_sampling_is_that_of_multinomial() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        drawn = choose(logits, Sampling(1.0, None, None), torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        expected = torch.multinomial(logits.double().softmax(-1), 1, generator=generator)[:, 0]
        assert torch.equal(drawn, expected)


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("case", "options"),
    [(DEPTH, {}), (ZooCase("smear"), {"temperature": 0.7, "top_k": 9, "top_p": 0.9})],
    ids=["greedy", "sampled"],
)
def test_the_same_tokens_of_one_graph(case: ZooCase, options: dict[str, Any]) -> None:
    decoder, prompts = zoo.make(case, num_layers=2), [some_tokens(2, 5, seed=seed) for seed in range(3)]
    padding = torch.tensor([0, 2])
    for prompt in prompts:
        expected = generate(decoder, prompt, max_new_tokens=6, left_padding=padding, **options)
        found = generate(decoder, prompt, max_new_tokens=6, left_padding=padding, compile=True, **options)
        assert torch.equal(found, expected)
    assert graphs() == 1


@pytest.mark.usefixtures("light")
def test_a_cache_is_used_again_where_it_is_long_enough_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_SHORTEST", 16)
    decoder, prompt = zoo.make(DEPTH, num_layers=2), some_tokens(1, 4)
    generate(decoder, prompt, max_new_tokens=3, compile=True)
    cache = steps._idle[decoder]
    addresses = [data.data_ptr() for data in (cache._length, *cache._keys.values(), *cache._values.values())]
    before = dict(torch._dynamo.utils.counters["stats"])
    one, other = (stream(decoder, prompt, max_new_tokens=4, compile=True) for _ in range(2))
    assert [int(a) == int(b) for a, b in zip(one, other, strict=True)] == [True] * 4
    assert dict(torch._dynamo.utils.counters["stats"]) == before
    generate(decoder, some_tokens(1, 9), max_new_tokens=3, compile=True)
    used = steps._idle[decoder]
    assert addresses == [data.data_ptr() for data in (cache._length, *cache._keys.values(), *cache._values.values())]
    assert used.max_length == cache.max_length == steps._SHORTEST
    longer = generate(decoder, prompt, max_new_tokens=steps._SHORTEST, compile=True)
    assert longer.size(1) == 4 + steps._SHORTEST
    assert steps._idle[decoder].max_length == 2 * steps._SHORTEST
    generate(decoder, prompt, max_new_tokens=5 * steps._SHORTEST, compile=True)
    assert steps._idle[decoder].max_length == 8 * steps._SHORTEST
    # A step reads all of it, so one much too long is given up.
    generate(decoder, some_tokens(1, 9), max_new_tokens=2 * steps._SHORTEST, compile=True)
    assert steps._idle[decoder].max_length == 8 * steps._SHORTEST
    generate(decoder, prompt, max_new_tokens=3, compile=True)
    assert steps._idle[decoder].max_length == steps._SHORTEST


@pytest.mark.parametrize(("needed", "length"), [(1, 256), (256, 256), (257, 512), (2048, 2048), (2049, 4096)])
def test_lengths_double(needed: int, length: int) -> None:
    assert steps.fixed_length(needed) == length


@pytest.mark.usefixtures("light")
@zoo.parametrized(zoo.PLAIN_CASES, {case.mixer: case for case in zoo.PLAIN_CASES}.values())
def test_every_mixer_writes_the_same_compiled(case: ZooCase) -> None:
    decoder, prompt = zoo.make(case), some_tokens(2, 5)
    options = {"max_new_tokens": 4, "left_padding": torch.tensor([0, 2])}
    assert torch.equal(generate(decoder, prompt, compile=True, **options), generate(decoder, prompt, **options))
    assert graphs() == 1


@pytest.mark.usefixtures("light")
def test_caches_of_ones_own() -> None:
    decoder, prompt = zoo.make(DEPTH, num_layers=2), some_tokens(1, 4)
    cache = decoder.new_cache(1, 9)
    found = generate(decoder, prompt, max_new_tokens=6, cache=cache, compile=True)
    assert torch.equal(found, generate(decoder, prompt, max_new_tokens=6))
    assert cache.length == 9
    with pytest.raises(CacheError, match=r"4 new tokens after 9 do not fit .* make it at least 13"):
        generate(decoder, prompt, max_new_tokens=1, cache=cache, compile=True)
    with pytest.raises(CacheError, match="this one grows"):
        generate(decoder, prompt, max_new_tokens=1, cache=decoder.new_cache(1), compile=True)


@pytest.mark.usefixtures("light")
def test_logits_that_are_not_finite_are_refused_within_the_graph() -> None:
    decoder, prompt = zoo.make(DEPTH, num_layers=2), some_tokens(1, 4)
    running = stream(decoder, prompt, max_new_tokens=4, compile=True)
    next(running)
    with torch.no_grad():
        decoder.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MixerzooError, match="logits are not finite"):
        next(running)


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("compile", [False, True])
def test_tokens_that_nobody_reads_before_the_last_are_looked_at_together(
    compile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prompt = zoo.make(DEPTH, num_layers=2), some_tokens(1, 4)
    looks: list[bool] = []
    look = steps.refuse_not_finite
    monkeypatch.setattr(steps, "refuse_not_finite", lambda finite: looks.append(bool(finite)) or look(finite))
    generate(decoder, prompt, max_new_tokens=6, compile=compile)
    assert looks == [True]
    list(stream(decoder, prompt, max_new_tokens=6, compile=compile))
    assert looks == [True] * 7
    pick, picks = Sampling.pick, []

    def damages_the_decoder(sampling: Sampling, *arguments: Any) -> Tensor:
        picks.append(sampling)
        if len(picks) == 2:
            with torch.no_grad():
                decoder.lm_head.weight[3] = float("nan")
        return pick(sampling, *arguments)

    if not compile:
        monkeypatch.setattr(Sampling, "pick", damages_the_decoder)
        with pytest.raises(MixerzooError, match="logits are not finite"):
            generate(decoder, prompt, max_new_tokens=6)
        assert len(picks) == 6


@pytest.mark.slow
def test_with_the_real_compiler() -> None:
    logging.getLogger("torch.__trace").disabled = True
    _forget()
    decoder, prompt = zoo.make(DEPTH, num_layers=2), some_tokens(2, 5)
    for options in ({}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9}):
        expected = generate(decoder, prompt, max_new_tokens=6, **options)
        assert torch.equal(generate(decoder, prompt, max_new_tokens=6, compile=True, **options), expected)
    _forget()


# Prompts in parts.


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prompts_in_parts_give_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, prompt = zoo.make(DEPTH), some_tokens(2, 7)
    expected, lengths, forward = generate(decoder, prompt, max_new_tokens=3), [], decoder.model.forward
    monkeypatch.setattr(
        decoder.model,
        "forward",
        lambda tokens, *args, **kw: lengths.append(tokens.size(1)) or forward(tokens, *args, **kw),
    )
    assert torch.equal(generate(decoder, prompt, max_new_tokens=3, prefill_chunk=chunk), expected)
    assert lengths == {1: [1] * 9, 3: [3, 3, 1, 1, 1], 100: [7, 1, 1]}[chunk]


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True])
def test_parts_that_are_none(chunk: Any) -> None:
    with pytest.raises(MixerzooError, match=f"prefill_chunk is {chunk!r}; it must be a whole number of tokens"):
        generate(zoo.shared(DEPTH), some_tokens(1, 2), max_new_tokens=1, prefill_chunk=chunk)


@pytest.mark.parametrize("mixer", ["residual", "attn_res", "denseformer", "depth_attention", "hyper_connections"])
def test_the_default_bounds_what_is_in_flight(mixer: str) -> None:
    kind = load_registry().get(mixer).mixer
    config = ModelConfig(
        hidden_size=2560,
        intermediate_size=9728,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=8,
    )
    with torch.device("meta"):
        decoder = Decoder(config, kind, kind.Config()).to(torch.bfloat16)
    length = 128 * 1024
    chunk = steps.default_chunk(decoder, 1, length)
    of_residual = 2560 * 2
    state = chunk * (decoder.mixer.in_flight_bytes(torch.bfloat16) - of_residual)
    assert state + backends.MOST_MASK_BYTES <= 2**29 or chunk == length
    assert chunk == length if mixer == "residual" else 1024 < chunk < length
    assert steps.default_chunk(decoder, 2, length) == (length if mixer == "residual" else chunk // 2)


# The equation of attention over depth makes every score at once.
@pytest.mark.usefixtures("forms_by_size")
@torch.no_grad()
@pytest.mark.parametrize(
    ("mixer", "options"),
    [("attn_res", {"block_size": 2}), ("laurel", {"variant": "pa"}), ("hyper_connections", {}), ("moda", {})],
)
def test_long_prompts_take_little_more_than_with_residual(
    mixer: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A 32nd of 128K tokens and of the sizes of the test before, so that bounds by the square of it say the same.
    part = 32
    monkeypatch.setattr(steps, "_MOST_IN_FLIGHT", steps._MOST_IN_FLIGHT // part**2)
    monkeypatch.setattr(backends, "MOST_PAIRS", backends.MOST_PAIRS // part**2)
    monkeypatch.setattr(steps, "_FEW", 0)
    sizes = {"hidden_size": 80, "intermediate_size": 304, "num_heads": 4, "num_kv_heads": 1, "head_dim": 20}
    prompt, peaks = torch.zeros(1, 128 * 1024 // part, dtype=torch.long), {}
    for name, given in (("residual", {}), (mixer, options)):
        kind = load_registry().get(name).mixer
        config = ModelConfig(**sizes, num_layers=2, vocab_size=8)
        decoder = Decoder(config, kind, kind.Config.model_validate(given)).bfloat16()
        for parameter in decoder.parameters():
            parameter.fill_(0.01)
        run = steps.Steps(decoder, 1, Sampling(0.0, None, None))
        with measured_peak(torch.device("cpu")) as found:
            list(run.after(prompt))
        peaks[name] = found.bytes
    assert peaks[mixer] <= peaks["residual"] + 2**29 / part**2
