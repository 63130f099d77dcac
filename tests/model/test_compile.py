"""torch.compile takes the whole decoder as one graph, and one graph serves every length of a decode."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mixerzoo
import zoo
from mixerzoo import Decoder
from zoo import ZooCase, assert_close, some_tokens

#: Every mixer, both dialects, loops, shared slots, windows and separate inputs; the other cases are slow ones.
CHOSEN = (
    *zoo.PLAIN_CASES,
    ZooCase("denseformer", {"dilation": 2, "period": 3}),
    ZooCase("attn_res", {"dialect": "snapshot", "block_size": 1}),
    ZooCase("depth_attention", {"stride": 1}, zoo.LOOPED),
    zoo.planned_case((0, 1, 1, 1), (0, 1, 1, 0), 3, 3, None, None),
    *{case.mixer: case for case in reversed(zoo.ADHOC_CASES) if case.mixer != "planned"}.values(),
)
#: In CI; the conformance kit compiles every mixer.
FEW = (
    *(case for case in zoo.PLAIN_CASES if case.mixer in ("residual", "depth_attention", "attn_res", "mudd", "yoco")),
    *(
        case
        for case in zoo.PLAIN_CASES
        if case.mixer in ("denseformer", "hyper_connections", "moda", "smear", "compose")
    ),
    ZooCase("depth_attention", {"stride": 1}, zoo.LOOPED),
    zoo.planned_case((0, 1, 1, 1), (0, 1, 1, 0), 3, 3, None, None),
)
every_case = zoo.parametrized(zoo.CASES, FEW)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    # Its records would all be captured by pytest.
    logging.getLogger("torch.__trace").disabled = True
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """A backend that counts the graphs that it compiles.

    Args:
        name: of the backend that does the work.
    """

    def __init__(self, name: str) -> None:
        self.inner = torch._dynamo.lookup_backend(name)
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Any:
        self.graphs += 1
        return self.inner(module, inputs, **options)


def small(case: ZooCase, num_layers: int = 3) -> Decoder:
    """Few layers, where the case leaves their number open."""
    fixed = "loop" in case.model or case.mixer == "planned"
    return zoo.make(case) if fixed else zoo.make(case, num_layers=num_layers)


def decode_in_one_graph(decoder: Decoder, backend: str, **arguments: Any) -> None:
    """Decode 8 tokens one by one, compiled, and compare with the eager full forward."""
    counting = Counting(backend)
    compiled = torch.compile(decoder, fullgraph=True, backend=counting)
    tokens, cache = some_tokens(2, 8), decoder.new_cache(2, 10)
    logits = torch.cat([compiled(token, cache, **arguments) for token in tokens.split(1, dim=1)], dim=1)
    assert counting.graphs == 1
    assert cache.length == 8
    padding = arguments.get("left_padding", torch.zeros(2, dtype=torch.long))
    real = torch.arange(8) >= padding[:, None]
    assert_close(logits[real], decoder(tokens, **arguments)[real])


def test_chosen_cases_are_in_the_zoo() -> None:
    assert set(CHOSEN) <= set(zoo.CASES)
    assert {case.mixer for case in CHOSEN} == {case.mixer for case in zoo.CASES}


@every_case
@torch.no_grad()
def test_forward(case: ZooCase) -> None:
    decoder, counting = small(case), Counting("aot_eager")
    compiled = torch.compile(decoder, fullgraph=True, backend=counting)
    # The second length makes the length symbolic; from then on, one graph serves all.
    for length, graphs in ((5, 1), (7, 2), (9, 2), (4, 2)):
        assert_close(compiled(some_tokens(2, length)), decoder(some_tokens(2, length)))
        # What goes token by token is a graph of its own for every length.
        assert counting.graphs == graphs or decoder.plan.is_sequential


@every_case
@torch.no_grad()
def test_cached_decode(case: ZooCase) -> None:
    decode_in_one_graph(small(case), "aot_eager")


@pytest.mark.parametrize("case", [ZooCase("depth_attention"), ZooCase("smear")], ids=str)
@torch.no_grad()
def test_cached_decode_with_left_padding(case: ZooCase) -> None:
    decode_in_one_graph(small(case), "aot_eager", left_padding=torch.tensor([0, 2]))


@torch.no_grad()
def test_cached_decode_with_inductor() -> None:
    decode_in_one_graph(small(ZooCase("depth_attention"), num_layers=2), "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("case", CHOSEN, ids=str)
@torch.no_grad()
def test_cached_decode_with_inductor_of_every_mixer(case: ZooCase) -> None:
    decode_in_one_graph(small(case), "inductor")


@torch.no_grad()
def test_prefill_and_steps_are_two_graphs_for_any_number_of_caches() -> None:
    decoder, counting = small(ZooCase("depth_attention")), Counting("aot_eager")
    compiled = torch.compile(decoder, fullgraph=True, backend=counting)
    for seed in range(3):
        tokens, cache = some_tokens(2, 7, seed=seed), decoder.new_cache(2, 8)
        logits = torch.cat([compiled(piece, cache) for piece in tokens.split([4, 1, 1, 1], dim=1)], dim=1)
        assert_close(logits, decoder(tokens))
        assert counting.graphs == 2


class MutatedInputs:
    """A backend that finds what a graph writes to: where any of it may move, no CUDA graph can be made."""

    def __init__(self) -> None:
        self.inner = torch._dynamo.lookup_backend("aot_eager")
        self.moving: list[list[str]] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Any:
        written = {node.args[0] for node in module.graph.nodes if str(node.target).endswith("_") and node.args}
        places = [node for node in module.graph.find_nodes(op="placeholder") if node in written]
        assert places
        static = [node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type") for node in places]
        self.moving.append([node.name for node, kind in zip(places, static, strict=True) if kind is None])
        return self.inner(module, inputs, **options)


WINDOWED = zoo.planned_case((0, 1, 2, 3), (0, 1, 2, 3), 3, None, 3, None)


@pytest.mark.parametrize("case", [ZooCase("residual"), ZooCase("depth_attention"), ZooCase("smear"), WINDOWED], ids=str)
def test_a_step_writes_only_to_tensors_that_stay_where_they_are(case: ZooCase) -> None:
    decoder, seen = small(case), MutatedInputs()
    compiled = torch.compile(decoder, fullgraph=True, backend=seen)
    tokens, prompts = some_tokens(2, 8), some_tokens(2, 8, seed=1)
    with torch.inference_mode():
        cache = decoder.new_cache(2, 10)
    addresses = _addresses(cache)
    for mode in (torch.no_grad, torch.inference_mode):
        for given in (tokens, prompts):
            with mode():
                logits = torch.cat([compiled(token, cache) for token in given.split(1, dim=1)], dim=1)
                assert_close(logits, decoder(given))
            assert _addresses(cache) == addresses
            cache.reset()
    # Inference mode has a graph of its own; a second prompt over the same cache has not.
    assert seen.moving == [[], []]


@pytest.mark.parametrize("case", [ZooCase("depth_attention"), ZooCase("smear"), WINDOWED], ids=str)
@torch.no_grad()
def test_nothing_is_compiled_from_the_second_token_on(case: ZooCase) -> None:
    decoder = small(case)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    cache = decoder.new_cache(2, 10)
    first, *others = some_tokens(2, 9).split(1, dim=1)
    compiled(first, cache)
    before = dict(torch._dynamo.utils.counters["stats"])
    for token in others:
        compiled(token, cache)
    for _ in range(2):
        cache.reset()
        compiled(first, cache)
    assert dict(torch._dynamo.utils.counters["stats"]) == before
    assert before["unique_graphs"] == 1


def _addresses(cache: mixerzoo.KVCache) -> list[int]:
    tail = [] if cache._tail is None else [cache._tail.data]
    return [data.data_ptr() for data in (cache._length, *cache._keys.values(), *cache._values.values(), *tail)]


def test_generation_with_a_compiled_decoder() -> None:
    decoder, counting = small(ZooCase("depth_attention")), Counting("aot_eager")
    compiled = torch.compile(decoder, fullgraph=True, backend=counting)
    prompt = some_tokens(2, 3)
    cache = decoder.new_cache(2, 12)
    generated = mixerzoo.generate(compiled, prompt, max_new_tokens=8, cache=cache)
    assert torch.equal(generated, mixerzoo.generate(decoder, prompt, max_new_tokens=8))
    assert counting.graphs == 2


@pytest.mark.parametrize(
    ("case", "recompute"),
    [
        (ZooCase("residual"), False),
        (ZooCase("denseformer"), False),
        (ZooCase("attn_res"), False),
        (ZooCase("depth_attention"), False),
        (ZooCase("depth_attention", {"stride": 1}, zoo.LOOPED), True),
        (zoo.planned_case((0, 0, 2, 2), (0, 0, 2, 2)), True),
    ],
    ids=str,
)
def test_gradients(case: ZooCase, recompute: bool) -> None:
    decoder, tokens = small(case), some_tokens(2, 5)
    parameters = list(decoder.parameters())

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(logits.logsumexp(-1).sum(), parameters))

    expected = gradients(decoder(tokens))
    decoder.model.activation_checkpointing = "layers" if recompute else "none"
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(gradients(compiled(tokens)), expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_gradients_with_inductor(case: ZooCase) -> None:
    decoder, tokens = small(case), some_tokens(2, 5)
    parameters = list(decoder.parameters())

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(logits.logsumexp(-1).sum(), parameters))

    compiled = torch.compile(decoder, fullgraph=True)
    for ours, theirs in zip(gradients(compiled(tokens)), gradients(decoder(tokens)), strict=True):
        assert_close(ours, theirs)
