"""Sources of many readers: what all readers say of a gradient is added up once, and is right whoever else asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from case import ZooCase
from mixerzoo import ops
from mixerzoo.ops import forms
from mixerzoo.ops.shared import Unsummed

READERS = 5


@pytest.fixture(autouse=True)
def one_node_for_each_read() -> Iterator[None]:
    with forms.forced("fused"):
        yield


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
    x, weight = leaf(2, 3, 4), leaf(2, 3, 1, seed=1)

    def read(source: Tensor) -> Tensor:
        # The backward takes what was made last first.
        reads = [
            lambda: source.exp().sum(),
            lambda: ops.weighted_sum([source], weight).sum(),
            lambda: source.sin().sum(),
        ]
        total = torch.zeros((), dtype=source.dtype)
        for each in reads if first == "plain" else reads[::-1]:
            total = total + each()
        return total

    (expected,) = torch.autograd.grad(read(x * 1), x)
    (found,) = torch.autograd.grad(read(ops.shared(x * 1)), x)
    zoo.assert_close(found, expected, 1e-12)


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


def test_hooks_see_the_sum() -> None:
    x, weight = leaf(2, 3, 4), torch.rand(2, 3, 1).double()
    seen: list[Tensor] = []
    source = ops.shared(x * 1)

    def doubled(grad: Tensor) -> Tensor:
        seen.append(grad * 1)
        return 2 * grad

    source.register_hook(doubled)
    (ops.weighted_sum([source], weight).sum() + ops.weighted_sum([source], 3 * weight).sum()).backward()
    expected = (4 * weight).expand(2, 3, 4)
    zoo.assert_close(seen[0], expected, 1e-12)
    assert type(seen[0]) is Tensor
    assert x.grad is not None
    zoo.assert_close(x.grad, 2 * expected, 1e-12)


def test_a_source_is_shared_only_where_a_gradient_is_wanted() -> None:
    x = leaf(1, 2, 3)
    with torch.no_grad():
        assert ops.shared(x) is x
    assert ops.shared(x.detach()).grad_fn is None
    with forms.forced("naive"):
        assert ops.shared(x) is x
    with forms.forced(None):
        assert ops.shared(x) is x  # too small for a node
    assert ops.shared(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("case", "num_readers"),
    [
        (ZooCase("attn_res"), 8),
        (ZooCase("attn_res", {"block_size": 3}), 8),
        (ZooCase("delta_attn_res"), 7),
        (ZooCase("denseformer"), 4),
        (ZooCase("mudd"), 4),
        (ZooCase("dca"), 3),
        (ZooCase("dca", {"dialect": "outputs"}), 3),
    ],
    ids=str,
)
def test_mixers_share_the_sources_that_many_sites_read(
    case: ZooCase, num_readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    summed = Unsummed.summed

    def counted(grad: Unsummed) -> Tensor:
        most.append(len(grad.reads))
        return summed(grad)

    monkeypatch.setattr(Unsummed, "summed", counted)
    zoo.make(case, num_layers=4)(zoo.some_tokens(1, 4)).sum().backward()
    assert max(most) >= num_readers
