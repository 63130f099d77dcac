"""Operations over depth: the equation, the fused form and the kernel give the same, and the fused form keeps little."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import zoo
from case import ZooCase
from mixerzoo import ops
from mixerzoo.ops import forms, joint_attention, sequence_attention
from operations import CLOSE, DRAWN, EPS, JOINT, NAMES, SHARED, Drawn, attended, gradients, operation

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton and TRITON_INTERPRET=1",
)

#: Triton's own warning, from NumPy 2.4 on an error.
quiet = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


every_operation = pytest.mark.parametrize("name", NAMES)


def assert_same(drawn: Drawn, form: forms.Form) -> None:
    function, leaves = drawn
    exact = gradients((function, [x.detach().double().requires_grad_() for x in leaves]), "naive")
    tolerance = max(CLOSE[x.dtype] for x in leaves)
    for got, like, expected in zip(gradients(drawn, form), [None, *leaves], exact, strict=True):
        assert like is None or (got.dtype, got.shape) == (like.dtype, like.shape)
        # A single source has a weight of 1 whatever its key is, so gradients can be zero.
        assert (got.double() - expected).norm() <= tolerance * (expected.norm() + exact[0].norm())


@pytest.mark.parametrize("form", ["naive", "fused"])
@pytest.mark.parametrize("shape", [(2,), (2, 4), (1, 3, 2)], ids=["site", "channel", "token"])
def test_weights_of_channels_are_added_to_weights_of_any_kind(shape: tuple[int, ...], form: Any) -> None:
    sources, weights, channels = (
        torch.randn(2, 1, 3, 4).double(),
        torch.randn(*shape).double(),
        torch.randn(2, 4).double(),
    )
    each = [weights[n] if len(shape) < 3 else weights[..., n, None] for n in range(2)]
    expected = sum((w + c) * x for w, c, x in zip(each, channels, sources, strict=True))
    with forms.forced(form):
        zoo.assert_close(ops.weighted_sum(list(sources), weights, channels), expected)
        assert ops.weighted_sum(list(sources.bfloat16()), weights, channels).dtype == torch.bfloat16


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize("form", ["naive", "fused", pytest.param("kernel", marks=[interpreted, pytest.mark.slow])])
@pytest.mark.parametrize(
    "refused",
    [
        lambda: ops.weighted_sum([ones(2, 3, 8)] * 6, ones(6, 1)),
        lambda: ops.weighted_sum([ones(2, 3, 8)] * 6, ones(2, 3, 6), ones(6, 1)),
        lambda: ops.stream_write(ones(2, 3, 4, 8), None, ones(2, 3, 4), ones(1, 3, 8)),
        lambda: ops.stream_write(ones(2, 3, 4, 8), None, ones(2, 3, 4), ones(2, 3, 1)),
        lambda: ops.weighted_sum([ones(2, 3, 8)] * 6, ones(6), ones(6, 1)),
        lambda: ops.depth_softmax(ones(1, 4, 5, 8), [ones(3, 2, 5, 8)], [ones(3, 2, 5, 8)]),
        lambda: ops.depth_softmax(ones(3, 4, 5, 4), [ones(3, 2, 5, 8)], [ones(3, 2, 5, 8)]),
        lambda: ops.sinkhorn(ones(2, 3, 4), 3),
    ],
    ids=[
        "weights of channels",
        "channels beside tokens",
        "output of one row",
        "output of one channel",
        "channels beside sites",
        "queries of one row",
        "narrow queries",
        "matrices",
    ],
)
def test_what_would_be_read_beyond_its_end_is_refused(refused: Callable[[], Tensor], form: Any) -> None:
    with forms.forced(form), pytest.raises(ValueError, match=r"cannot (have|take|score)|must be square"):
        refused()


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("last", [torch.ones(1, 3, 8), torch.ones(2, 3, 8, device="meta")], ids=["shape", "device"])
def test_a_kernel_refuses_sources_that_are_not_alike(last: Tensor) -> None:
    from mixerzoo.ops import kernels

    with pytest.raises(ValueError, match="of one shape on one device"):
        kernels.weighted_sum([*[ones(2, 3, 8)] * 5, last], ones(6))


@pytest.mark.parametrize("form", ["naive", "fused", pytest.param("kernel", marks=[interpreted, pytest.mark.slow])])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.parametrize(
    ("bad", "where"), [(float("nan"), (0, 1, 2)), (float("inf"), (0, 1, 2)), (-float("inf"), 0)], ids=str
)
def test_a_matrix_of_logits_that_are_no_numbers_is_none(bad: float, where: Any, form: Any) -> None:
    logits = torch.zeros(2, 3, 3)
    logits[where] = bad
    logits.requires_grad_()
    with forms.forced(form):
        matrix = ops.sinkhorn(logits, 20)
        (grad,) = torch.autograd.grad(matrix.square().sum(), logits)
    assert matrix[0].isnan().all()
    assert not grad[0].isfinite().all()
    assert matrix[1].isfinite().all()
    assert grad[1].isfinite().all()


@every_operation
@given(**DRAWN)
@settings(max_examples=15)
def test_fused_is_the_equation(name: str, **drawn: Any) -> None:
    assert_same(operation(name, **drawn), "fused")


def unusual(name: str) -> Drawn:
    """Operations of what documentation allows and no mixer at hand asks for."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    if name == "scores of other dtypes":
        sources = [leaf(2, 3, 8), leaf(2, 3, 8, dtype=torch.float32)]

        return lambda *leaves: attended(leaves[:2], *leaves[2:]), [*sources, leaf(8), leaf(8)]
    dtypes = {
        "two short dtypes": (torch.float16, torch.bfloat16),
        "wide sources last": (*(torch.bfloat16,) * 5, *(torch.float32,) * 6),
    }.get(name, (torch.float64,) * 2)
    shape = {"weights of all rows": (1, 1, 2), "weights of each token": (1, 3, 2)}.get(name, (2, 3, len(dtypes)))
    sources = [leaf(2, 3, 8, dtype=dtype) for dtype in dtypes]
    return lambda *leaves: ops.weighted_sum(leaves[:-1], leaves[-1]), [*sources, leaf(*shape, dtype=dtypes[1])]


UNUSUAL = (
    "scores of other dtypes",
    "two short dtypes",
    "wide sources last",
    "weights of all rows",
    "weights of each token",
)


@pytest.mark.parametrize("form", ["fused", pytest.param("kernel", marks=[interpreted, pytest.mark.slow, quiet])])
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_the_equation_too(name: str, form: Any) -> None:
    assert_same(unusual(name), form)


@contextmanager
def many_programs() -> Iterator[None]:
    """Small tensors take several programs, tiles and parts, as large ones do."""
    from mixerzoo.ops import kernels, stream_kernels

    small = {name: replace(tiling, elements=16) for name, tiling in kernels.TILINGS.items()}
    with (
        mock.patch.multiple(kernels, PROGRAMS=2, TILINGS=small),
        mock.patch.multiple(stream_kernels, ELEMENTS=64, CELLS=16),
    ):
        yield


@interpreted
@pytest.mark.slow
@quiet
@every_operation
@pytest.mark.parametrize("programs", [nullcontext, many_programs])
@given(**DRAWN)
@settings(max_examples=5, deadline=None)
def test_kernel_is_the_equation(name: str, programs: Callable[[], AbstractContextManager[None]], **drawn: Any) -> None:
    with programs():
        assert_same(operation(name, **drawn), "kernel")


@pytest.mark.parametrize("name", JOINT)
@given(**DRAWN)
@settings(max_examples=5)
def test_attention_without_a_kernel_is_the_equation(name: str, **drawn: Any) -> None:
    with (
        mock.patch.object(sequence_attention.Sequence, "engine", "chunks"),
        mock.patch.object(sequence_attention, "CHUNK", 2),
        mock.patch.object(joint_attention, "CHUNK", 3),
    ):
        assert_same(operation(name, **drawn), "fused")


@pytest.mark.usefixtures("forms_by_size")
@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"block_size": 3}, {"block_size": 7}, {"dialect": "snapshot", "block_size": 4}], ids=str
)
def test_attention_residuals_read_ahead_give_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = zoo.make(ZooCase("attn_res", options), num_layers=6)
    tokens = zoo.some_tokens(2, 5)
    expected = decoder(tokens)
    reads = mock.Mock(wraps=ops.source_reads)
    monkeypatch.setattr(forms, "SMALLEST", 0)
    monkeypatch.setattr(ops, "source_reads", reads)
    zoo.assert_close(decoder(tokens), expected, 1e-12)
    assert reads.call_count


@given(**{**DRAWN, "dtypes": st.just([torch.float64] * 2)}, num_queries=st.integers(1, 5), biased=st.booleans())
@settings(max_examples=10)
def test_two_phases_are_one_softmax(num_queries: int, biased: bool, num_sources: int, **drawn: Any) -> None:
    _, (*sources, _, _, _) = operation("source_softmax, queries", num_sources + 1, **drawn)
    queries, gains = torch.randn(2, num_queries, sources[0].size(-1), dtype=torch.float64)
    bias = torch.tensor([3.0], dtype=torch.float64) if biased else None
    scores = [ops.source_scores(x, list(queries), list(gains), EPS) for x in sources]
    reads = zip(*ops.source_reads(sources[:-1], scores[:-1]), queries, gains, scores[-1], strict=True)
    for value, log_sum, query, gain, score in reads:
        once = attended(sources, query, gain, bias)
        last = score if bias is None else score + bias
        zoo.assert_close(ops.join_source(value, log_sum, sources[-1], last), once, 1e-12)
        zoo.assert_close(value, attended(sources[:-1], query, gain), 1e-12)


def test_gradient_of_sinkhorn_where_entries_lie_on_its_floor() -> None:
    # Two entries share the largest logit, one lies far below all others.
    logits = torch.tensor([[30.0, 30.0, 1.0], [2.0, -5.0, 0.5], [1.5, 28.0, 3.0]], dtype=torch.float64).requires_grad_()
    assert_same((lambda x: ops.sinkhorn(x, 20), [logits]), "fused")


@every_operation
@pytest.mark.parametrize("num_sources", [1, 3])
def test_gradients_of_gradients(name: str, num_sources: int) -> None:
    function, leaves = operation(name, num_sources, 2, 3, [torch.float64] * 2)
    with forms.forced("fused"):
        assert torch.autograd.gradcheck(function, leaves, atol=1e-6)
        assert torch.autograd.gradgradcheck(function, leaves, atol=1e-6)


@pytest.mark.parametrize("name", ["per token", "source_softmax", "depth_softmax", "stream_write", "joint"])
def test_gradients_of_inputs_that_are_made_of_each_other(name: str) -> None:
    function, leaves = operation(name, 3, 2, 3, [torch.float64] * 2)

    def chained(*leaves: Tensor) -> Tensor:
        # Every input is made of the one before of its shape, and the last two are one.
        made: dict[torch.Size, Tensor] = {}
        inputs = []
        for x in leaves:
            made[x.shape] = x.sin() if x.shape not in made else x + made[x.shape].cos()
            inputs.append(made[x.shape])
        if inputs[-1].shape == inputs[-2].shape:
            inputs[-1] = inputs[-2]
        return function(*inputs)

    with forms.forced("naive"):
        expected = torch.autograd.grad(chained(*leaves).square().sum(), leaves, allow_unused=True)
    with forms.forced("fused"):
        found = torch.autograd.grad(chained(*leaves).square().sum(), leaves, create_graph=True, allow_unused=True)
        assert torch.autograd.gradgradcheck(chained, leaves, atol=1e-6)
    for got, like in zip(found, expected, strict=True):
        assert (got is None) == (like is None)
        assert got is None or zoo.assert_close(got, like, 1e-12) is None


def test_a_hook_of_an_input_is_called_once_where_gradients_have_gradients() -> None:
    x, weights = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64)
    source = x * 1
    source.register_hook(lambda grad: 2 * grad)
    with forms.forced("fused"):
        (found,) = torch.autograd.grad(ops.weighted_sum([source], weights).sum(), x, create_graph=True)
    zoo.assert_close(found, torch.full_like(x, 2.0), 0)


@every_operation
def test_transforms_of_functions_see_the_equation(name: str) -> None:
    function, leaves = operation(name, 3, 4, 6, [torch.float64] * 2)
    number = len(leaves) - 1
    with forms.forced("fused"):
        found = torch.func.grad(lambda x: function(*leaves[:number], x).square().sum())(leaves[number])
        expected = torch.autograd.grad(function(*leaves).square().sum(), leaves[number])[0]
    zoo.assert_close(found, expected, 1e-10)


@pytest.mark.usefixtures("forms_by_size")
@every_operation
def test_shapes_on_the_meta_device(name: str) -> None:
    function, leaves = operation(name, 3, 4, 6, [torch.float32, torch.bfloat16])
    out = function(*(x.detach().to("meta") for x in leaves))
    assert out.is_meta
    assert (out.shape, out.dtype) == (function(*leaves).shape, function(*leaves).dtype)


@every_operation
def test_views_and_rows_of_heads(name: str) -> None:
    # Values come from projections as [B, T, G, d], transposed.
    function, leaves = operation(name, 3, 4, 6, [torch.float64] * 2)
    turned = [x.detach().mT.contiguous().mT.requires_grad_() for x in leaves if x.ndim > 1]
    turned += [x for x in leaves if x.ndim == 1]
    if [x.ndim for x in turned] == [x.ndim for x in leaves]:
        assert_same((function, turned), "fused")


@every_operation
def test_recomputed_in_the_backward(name: str) -> None:
    function, leaves = operation(name, 3, 4, 6, [torch.float64, torch.float64])
    once = gradients((function, leaves), "fused")
    again = gradients((lambda *xs: checkpoint(function, *xs, use_reentrant=False), leaves), "fused")
    for got, expected in zip(again, once, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_operation
def test_one_node_under_compile(name: str) -> None:
    function, leaves = operation(name, 3, 4, 6, [torch.float64] * 2)
    graphs = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(module)
        return torch._dynamo.lookup_backend("aot_eager")(module, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    pairs = zip(gradients((compiled, leaves), "fused"), gradients((function, leaves), "naive"), strict=True)
    assert all(torch.allclose(got, expected, rtol=0, atol=1e-10) for got, expected in pairs)
    (graph,) = graphs
    # The scores of each source are a node of their own; 1 / rms alone is left to the compiler.
    nodes = {"source_softmax, queries": 4, "inverse_rms": 0}.get(name.removeprefix(SHARED), 1)
    nodes *= 1 + name.startswith(SHARED)
    assert sum("mixerzoo" in str(node.target) for node in graph.graph.nodes) == nodes
    torch._dynamo.reset()
