"""Sources of many readers: what all readers say of a gradient is added up once, and is right whoever else asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from case import ZooCase
from mixerzoo import ops
from mixerzoo.ops import forms
from mixerzoo.ops.shared import AT_ONCE, Unsummed
from operations import operation

READERS = 5


@pytest.fixture(autouse=True)
def one_node_for_each_read() -> Iterator[None]:
    with forms.forced("fused"):
        yield


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many reads are summed at once, each time."""
    found: list[int] = []
    summed = Unsummed.summed

    def counted(grad: Unsummed) -> Tensor:
        if grad.reads:
            found.append(len(grad.reads))
        return summed(grad)

    monkeypatch.setattr(Unsummed, "summed", counted)
    return found


class Calls(TorchDispatchMode):
    """Counts the operations whose result is of one shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.calls = shape, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and type(out) is Tensor and tuple(out.shape) == self.shape:
            self.calls[func.overloadpacket.__name__] += 1
        return out


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def added(source: Tensor, weights: list[Tensor]) -> Counter[str]:
    """What a backward of many reads of one source does to vectors of the source's size."""
    out = sum(ops.weighted_sum([source], weight).square().sum() for weight in weights)
    assert isinstance(out, Tensor)
    with Calls(tuple(source.shape)) as mode:
        out.backward()
    return mode.calls


def test_no_reader_adds_to_the_gradient_by_itself() -> None:
    x, weights = leaf(2, 3, 4), [leaf(2, 3, 1, seed=n) for n in range(READERS)]
    plain = added(x * 1, weights)
    expected, x.grad = x.grad, None
    shared = added(ops.shared(x * 1), weights)
    assert expected is not None
    assert x.grad is not None
    zoo.assert_close(x.grad, expected, 1e-12)
    assert plain["add"] + plain["add_"] == READERS - 1
    assert shared["add"] + shared["add_"] == 0


@pytest.mark.parametrize("first", ["plain", "weighed"])
def test_readers_without_an_operation_are_added_too(first: str) -> None:
    x, weight, other = leaf(2, 3, 4), leaf(2, 3, 1, seed=1), leaf(2, 3, 4, seed=2)

    def read(source: Tensor) -> Tensor:
        # A sum gives both its terms one tensor, which is not the source's to change.
        beside = other * 1
        # The backward takes what was made last first.
        reads = [
            lambda: source.exp().sum(),
            lambda: ops.weighted_sum([source], weight).sum(),
            lambda: (source + beside).sin().sum(),
        ]
        total = torch.zeros((), dtype=source.dtype)
        for each in reads if first == "plain" else reads[::-1]:
            total = total + each()
        return total

    expected = torch.autograd.grad(read(x * 1), [x, weight, other])
    found = torch.autograd.grad(read(ops.shared(x * 1)), [x, weight, other])
    for got, like in zip(found, expected, strict=True):
        zoo.assert_close(got, like, 1e-12)


def test_weights_of_all_kinds_meet_at_one_source() -> None:
    x, channels = leaf(2, 3, 4), leaf(1, 4, seed=9)
    weights = [leaf(*shape, seed=n) for n, shape in enumerate([(1,), (1, 4), (2, 3, 1), (1, 1, 1), (1, 3, 1)])]

    def read(source: Tensor) -> Tensor:
        sums = [ops.weighted_sum([source], weight).square() for weight in weights]
        return torch.stack([*sums, ops.weighted_sum([source], weights[2], channels).exp()]).sum()

    leaves = [x, channels, *weights]
    expected = torch.autograd.grad(read(x * 1), leaves)
    for got, like in zip(torch.autograd.grad(read(ops.shared(x * 1)), leaves), expected, strict=True):
        zoo.assert_close(got, like, 1e-12)


def test_whoever_asks_for_the_gradient_of_a_shared_source_gets_the_sum() -> None:
    x, weight = leaf(2, 3, 4), torch.rand(2, 3, 1).double()
    source = ops.shared(x * 1)
    seen: list[Tensor] = []

    def read() -> Tensor:
        return ops.weighted_sum([source], weight).sum() + ops.weighted_sum([source], 3 * weight).sum()

    def changed(grad: Tensor) -> Tensor:
        seen.append(grad)
        return 2 * (grad + 1)

    expected = (4 * weight).expand(2, 3, 4)
    (found,) = torch.autograd.grad(read(), source)
    source.register_hook(changed)
    source.retain_grad()
    read().backward()
    assert source.grad is not None
    assert x.grad is not None
    for got, like in [(found, expected), (seen[0], expected), (source.grad, 2 * expected + 2)]:
        assert type(got) is Tensor
        zoo.assert_close(got, like, 1e-12)
    zoo.assert_close(x.grad, 2 * expected + 2, 1e-12)


def test_two_backwards_of_one_graph() -> None:
    x, weight = leaf(2, 3, 4), leaf(2, 3, 1, seed=1)

    def read(source: Tensor) -> Tensor:
        return torch.stack([ops.weighted_sum([source], n * weight).square() for n in range(1, 4)]).sum()

    expected = torch.autograd.grad(read(x * 1), [x, weight])
    out = read(ops.shared(x * 1))
    for _ in range(2):
        for got, like in zip(torch.autograd.grad(out, [x, weight], retain_graph=True), expected, strict=True):
            zoo.assert_close(got, like, 1e-12)


def test_what_is_not_summed_is_not_changed_in_place() -> None:
    x, weight = leaf(2, 3, 4), leaf(2, 3, 1, seed=1)
    out = ops.weighted_sum([ops.shared(x)], weight)
    assert out.grad_fn is not None
    out.grad_fn.register_hook(lambda inputs, outputs: inputs[0].mul_(0) and None)
    with pytest.raises(RuntimeError, match="would change a gradient that is not summed yet"):
        out.sum().backward()


@pytest.mark.parametrize("shape", [(1,), (1, 4), (2, 3, 1)], ids=["site", "channel", "token"])
def test_an_optimizer_may_step_within_the_backward(shape: tuple[int, ...]) -> None:
    x, weights = leaf(2, 3, 4), [leaf(*shape, seed=1)]
    if len(shape) == 3:
        weights.append(leaf(1, 4, seed=2))  # of channels
    with torch.no_grad():
        expected = torch.stack(torch.broadcast_tensors(*weights)).sum(0).expand(2, 3, 4)

    def step(weight: Tensor) -> None:
        weight.data.zero_()

    for weight in weights:
        weight.register_post_accumulate_grad_hook(step)
    ops.weighted_sum([ops.shared(x * 1)], *weights).sum().backward()
    assert x.grad is not None
    zoo.assert_close(x.grad, expected, 1e-12)
    assert not any(weight.any() for weight in weights)


def test_few_gradients_are_held_at_once(sums: list[int]) -> None:
    x, weights = leaf(2, 3, 4), [leaf(2, 3, 1, seed=n) for n in range(3 * AT_ONCE)]

    def read(source: Tensor) -> Tensor:
        return (
            torch.stack([ops.weighted_sum([source], weight).square() for weight in weights]).sum() + source.exp().sum()
        )

    (expected,) = torch.autograd.grad(read(x * 1), x)
    (found,) = torch.autograd.grad(read(ops.shared(x * 1)), x)
    zoo.assert_close(found, expected, 1e-12)
    assert sums == [AT_ONCE] * 3


def test_a_source_is_shared_only_where_a_gradient_is_wanted() -> None:
    x = leaf(1, 2, 3)
    with torch.no_grad():
        assert ops.shared(x) is x
    assert ops.shared(x.detach()).grad_fn is None
    with forms.forced("naive"):
        assert ops.shared(x) is x
    with forms.forced(None):
        assert ops.shared(x) is x  # too small for a node
    view = ops.shared(x)
    assert view is not x
    assert view.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("kind", ["per site", "per channel", "per token", "several per token and channel"])
def test_a_compiler_is_told_how_gradients_lie_in_memory(kind: str) -> None:
    _, leaves = operation(kind, 3, 4, 6, [torch.float64] * 2)
    sources = [x.detach() for x in leaves[:3]]
    weights = [x.detach() for x in leaves[3:] if "channel" not in kind or x.ndim > 2 or kind == "per channel"]
    channels = [x.detach() for x in leaves[3 + len(weights) :]]
    grads = [torch.randn_like(sources[0]) for _ in weights]
    arguments = (grads, sources, weights, channels, [True, False, True], False)
    opcheck(torch.ops.mixerzoo.weighted_sum_backward.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("case", "num_reads"),
    [
        (ZooCase("attn_res"), [8, 8, 7, 6, 5, 4, 3, 2, 1]),
        # The open block is not shared.
        (ZooCase("attn_res", {"block_size": 3}), [8, 6, 3]),
        (ZooCase("delta_attn_res"), [7, 7, 6, 5, 4, 3, 2, 1]),
        (ZooCase("denseformer"), [4, 4, 3, 2, 1]),
        (ZooCase("mudd"), [13, 13, 9, 5, 1]),
        (ZooCase("dca"), [9, 9, 6, 3]),
        (ZooCase("dca", {"num_recent": 1}), [9, 6, 6, 3]),
        (ZooCase("laurel", {"variant": "pa", "num_previous": 3}), [3, 3, 3, 3, 3, 3, 2, 1]),
    ],
    ids=str,
)
def test_mixers_share_the_sources_that_many_sites_read(case: ZooCase, num_reads: list[int], sums: list[int]) -> None:
    zoo.make(case, num_layers=4)(zoo.some_tokens(1, 4)).sum().backward()
    assert sorted(sums, reverse=True) == num_reads


@pytest.mark.parametrize(
    ("num_layers", "num_reads"),
    [
        (7, []),  # of few sources
        # Keys and values of all layers but the last two; a layer but the first reads its keys itself, too.
        (8, [7, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2]),
    ],
)
def test_depth_attention_shares_what_is_read_beside_many(
    num_layers: int, num_reads: list[int], sums: list[int]
) -> None:
    decoder = zoo.make(ZooCase("depth_attention", {"stride": 1}), num_layers=num_layers)
    decoder(zoo.some_tokens(1, 4)).sum().backward()
    assert sorted(sums, reverse=True) == num_reads
    found = [x.grad for x in decoder.parameters()]
    decoder.zero_grad()
    with forms.forced("naive"):
        decoder(zoo.some_tokens(1, 4)).sum().backward()
    for got, parameter in zip(found, decoder.parameters(), strict=True):
        assert (got is None) == (parameter.grad is None)
        assert got is None or zoo.assert_close(got, parameter.grad, 1e-12) is None
