"""Operations over depth where calls are what they cost, and linear layers of an input that is normed twice."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mixerzoo import ops
from mixerzoo.benchmark import kept_bytes
from mixerzoo.ops import forms
from operations import CLOSE, DRAWN, EPS, JOINT, NAMES, attended, gradients, operation

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("per ", "several", "source_softmax", "depth"))])
@given(**{**DRAWN, "num_sources": st.sampled_from([2, 3, 5, 97])})
@settings(max_examples=15)
def test_small_sources_are_stacked(name: str, num_sources: int, **drawn: Any) -> None:
    function, leaves = operation(name, num_sources, **drawn)
    expected, *exact = gradients((function, [x.detach().double().requires_grad_() for x in leaves]), "naive")
    with forms.forced("naive"):
        like = function(*leaves)
    with forms.forced(None), mock.patch.object(torch, "stack", wraps=torch.stack) as stack:
        got, *found = gradients((function, leaves), None)
        stacked = [len(call.args[0]) for call in stack.call_args_list if call.kwargs.get("dim") == -2]
        with torch.no_grad():
            assert torch.equal(function(*leaves), got)
    one_dtype = len({x.dtype for x in leaves[1:num_sources]} | {leaves[0].dtype}) == 1 or name == "depth_softmax"
    assert (num_sources in stacked) == (num_sources > 2 and one_dtype)
    assert (got.dtype, got.shape) == (like.dtype, like.shape)
    tolerance = max(CLOSE[x.dtype] for x in leaves)
    assert (got.double() - expected).norm() <= tolerance * (1 + expected.norm())
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.double() - theirs).norm() <= tolerance * (theirs.norm() + expected.norm())


def test_what_is_stacked_is_small_and_alike() -> None:
    def stacks(count: int, size: int, last: torch.dtype = torch.float32) -> bool:
        sources = [torch.ones(1, 1, size, dtype=last if n else torch.float32) for n in range(count)]
        with forms.forced(None):
            return forms.stacks(sources, forms.Policy(few=0, compiled=False, stacked=16))

    assert stacks(3, 16)
    assert not stacks(2, 16)
    assert not stacks(3, 17)
    assert not stacks(3, 16, torch.bfloat16)
    with forms.forced("naive"):
        assert not forms.stacks([torch.ones(1, 1, 4)] * 3, forms.Policy(few=0, compiled=False, stacked=16))


@pytest.mark.parametrize("form", [None, "naive", "fused"])
def test_as_many_weights_as_sources(form: Any) -> None:
    sources = [torch.ones(1, 2, 4)] * 4
    with forms.forced(form):
        for shape in ((1,), (5,), (1, 4), (1, 2, 1), (1, 2, 3)):
            with pytest.raises(ValueError, match=r"4 sources cannot have weights of shape \["):
                ops.weighted_sum(sources, torch.ones(shape))
        with pytest.raises(ValueError, match=r"weights of shape \[1, 2, 4\] and \[3, 4\]"):
            ops.weighted_sum(sources, torch.ones(1, 2, 4), torch.ones(3, 4))
        with pytest.raises(ValueError, match=r"4 sources cannot have weights of shape \[3\]"):
            ops.weighted_sums(sources, [torch.ones(4), torch.ones(3)])
        with pytest.raises(ValueError, match=r"weights of shapes \[4\] and \[1, 2, 4\] are of several kinds"):
            ops.weighted_sums(sources, [torch.ones(4), torch.ones(1, 2, 4)])
        with pytest.raises(ValueError, match="2 sums cannot have 1 weights of channels"):
            ops.weighted_sums(sources, [torch.ones(4), torch.ones(4)], [torch.ones(4, 4)])
        with pytest.raises(ValueError, match="4 sources cannot have 1 scores"):
            ops.source_softmax(sources, [torch.ones(1, 2)])
        with pytest.raises(ValueError, match="2 queries cannot have 1 gains"):
            ops.source_scores(sources[0], [torch.ones(4)] * 2, [torch.ones(4)], 1e-6)
        with pytest.raises(ValueError, match="2 keys cannot weigh 3 values"):
            ops.depth_softmax(torch.ones(1, 2, 3, 4), [torch.ones(1, 1, 3, 4)] * 2, [torch.ones(1, 1, 3, 4)] * 3)


@pytest.mark.parametrize("gain", [None, torch.randn(64, requires_grad=True)])
def test_a_normed_input_is_made_again_and_not_kept(gain: Tensor | None) -> None:
    x, weights = torch.randn(2, 5, 64, requires_grad=True), [torch.randn(8, 64, requires_grad=True) for _ in range(2)]
    kept = {}
    for form in ("naive", "fused"):
        with forms.forced(form):
            kept[form] = kept_bytes(lambda: sum(each.sum() for each in ops.normed_linear(x, weights, EPS, gain)), CPU)
    assert kept["fused"] == 0
    assert kept["naive"] >= x.nbytes * (1 if gain is None else 2)


@pytest.mark.parametrize("needed", range(6))
def test_gradients_of_normed_linear_are_made_where_they_are_needed(needed: int) -> None:
    function, leaves = operation("normed_linear, gain", 2, 3, 8, [torch.float64] * 2)
    only = [leaf.requires_grad_(number == needed) for number, leaf in enumerate(leaves)][needed]
    found = {}
    for form in ("naive", "fused"):
        with forms.forced(form), FlopCounterMode(display=False) as counter:
            (grad,) = torch.autograd.grad(function(*leaves).sin().sum(), only)
        found[form] = grad, counter.get_total_flops()
    torch.testing.assert_close(found["fused"][0], found["naive"][0], rtol=1e-12, atol=1e-12)
    assert found["fused"][1] == found["naive"][1]


@pytest.mark.parametrize(
    "name", ["normed_linear", "normed_linear, gain", "normed_product", "normed_product, gain", "source_scores"]
)
def test_the_counter_of_flops_sees_products_in_a_node(name: str) -> None:
    drawn, flops = operation(name, 2, 3, 8, [torch.float32] * 2), {}
    for form in ("naive", "fused"):
        with FlopCounterMode(display=False) as counter:
            gradients(drawn, form)
        flops[form] = counter.get_total_flops()
    assert flops["fused"] == flops["naive"] > 0


@pytest.mark.parametrize("name", JOINT)
def test_the_counter_of_flops_sees_attention_in_a_node(name: str) -> None:
    function, leaves = operation(name, 2, 3, 8, [torch.float32] * 2)
    counted = {}
    for form in ("naive", "fused"):
        with forms.forced(form), FlopCounterMode(display=False) as counter:
            out = function(*leaves)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        counted[form] = forward, counter.get_total_flops()
    forward, backward = counted["naive"]
    # Scores, half of the forward, are made once more.
    assert counted["fused"] == (forward, backward + forward / 2)
    assert backward == 2 * forward > 0


@pytest.mark.parametrize("form", ["naive", "fused"])
@pytest.mark.parametrize("dtypes", [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)], ids=str)
def test_scores_under_autocast_to_another_short_dtype(dtypes: tuple[torch.dtype, torch.dtype], form: Any) -> None:
    own, cast = dtypes
    parameters = [torch.randn(8, dtype=own, requires_grad=True) for _ in range(4)]
    source = torch.randn(2, 5, 8, dtype=cast, requires_grad=True)
    with forms.forced(form), torch.autocast("cpu", cast):
        scores = torch.stack(ops.source_scores(source, parameters[:2], parameters[2:], EPS))
    assert scores.dtype == torch.float32
    found = torch.autograd.grad(scores.sum(), [source, *parameters])
    assert [grad.dtype for grad in found] == [cast, own, own, own, own]


def test_no_query_has_no_scores() -> None:
    assert ops.source_scores(torch.randn(2, 5, 8), [], [], EPS) == ()


def test_one_row_of_one_vector_is_the_same_compiled() -> None:
    x, weight = torch.randn(8), torch.randn(1, 8)
    compiled = torch.compile(lambda: ops.normed_product(x, weight, EPS), backend="eager")
    torch.testing.assert_close(compiled(), ops.normed_product(x, weight, EPS))


def test_weights_are_not_cast_for_each_call_that_is_kept() -> None:
    x, weight = torch.randn(2, 5, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    with forms.forced("fused"), torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(lambda: sum(ops.normed_linear(x, [weight], EPS)[0].sum() for _ in range(4)), CPU)
    assert kept == 0


@pytest.mark.parametrize("kind", ["per token", "per token and channel"])
def test_a_sum_that_nobody_reads_has_no_gradient(kind: str) -> None:
    _, leaves = operation(f"several {kind}", 3, 4, 6, [torch.float64] * 2)
    sources, weights, channels = leaves[:3], leaves[3:6], leaves[6:] or None
    found = []
    for form in ("naive", "fused"):
        with forms.forced(form):
            one, *_ = ops.weighted_sums(sources, weights, channels)
            found.append(torch.autograd.grad(one.sin().sum(), leaves, allow_unused=True))
    assert [grad is None for grad in found[0]] == [number % 3 > 0 and number > 2 for number in range(len(leaves))]
    for naive, fused in zip(*found, strict=True):
        assert (naive is None) == (fused is None)
        if naive is not None:
            torch.testing.assert_close(fused, naive, rtol=0, atol=1e-12)


def test_a_sum_that_weighs_one_that_nobody_reads() -> None:
    _, leaves = operation("several per token", 3, 4, 6, [torch.float64] * 2)
    sources, weights = leaves[:3], leaves[3:]
    with forms.forced("fused"):
        unread = ops.weighted_sum(sources, weights[0])[..., :3]
        one, _ = ops.weighted_sums(sources, [weights[1], unread])
        found = torch.autograd.grad(one.sum(), [weights[0], weights[1]], allow_unused=True)
    assert found[0] is None or not found[0].any()
    assert found[1] is not None


@pytest.mark.parametrize("case", ["too large", "masked"])
def test_gradients_where_a_score_says_nothing_of_its_dot(case: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = 1e20 if case == "too large" else 1.0
    xs = [(scale * torch.randn(1, 3, 8, generator=generator)).requires_grad_() for _ in range(3)]
    query, gain = torch.randn(2, 8, generator=generator)
    bias = None if case == "too large" else torch.tensor([-torch.inf])
    found = []
    for form in ("naive", "fused"):
        with forms.forced(form):
            out = attended(xs, query, gain, bias)
            found.append(torch.autograd.grad((out / scale).sin().sum(), xs))
    for naive, fused in zip(*found, strict=True):
        assert fused.isfinite().all()
        torch.testing.assert_close(fused, naive, rtol=1e-5, atol=1e-6 / scale)


@pytest.mark.parametrize("form", ["naive", "fused"])
def test_normed_linear_multiplies_in_the_dtype_of_autocast(form: Any) -> None:
    x, weights = torch.randn(2, 5, 64, requires_grad=True), [torch.randn(8, 64, requires_grad=True) for _ in range(2)]
    with forms.forced(form), torch.autocast("cpu", torch.bfloat16):
        k, v = ops.normed_linear(x, weights, EPS)
        expected = torch.nn.functional.linear(ops.unit_rms(x, EPS), weights[1])
    assert k.dtype == v.dtype == torch.bfloat16
    assert torch.equal(v, expected)
    found = torch.autograd.grad(v.float().square().sum(), [x, weights[1]])
    for got, naive in zip(found, torch.autograd.grad(expected.float().square().sum(), [x, weights[1]]), strict=True):
        assert got.dtype == torch.float32
        assert (got - naive).norm() <= 0.02 * naive.norm()


def test_normed_linear_of_one_vector_and_of_other_dtypes() -> None:
    x, weight = torch.randn(6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    found = {}
    for form in ("naive", "fused"):
        with forms.forced(form):
            (out,) = ops.normed_linear(x, [weight], EPS)
            found[form] = torch.autograd.grad(out.square().sum(), [x, weight])
            for dtypes in ((torch.bfloat16, torch.float32), (torch.float64, torch.float32)):
                with pytest.raises(RuntimeError, match="dtype"):
                    ops.normed_linear(x.to(dtypes[0]), [weight.to(dtypes[1])], EPS)
    for got, expected in zip(found["fused"], found["naive"], strict=True):
        torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="1 weights cannot have 2 biases"):
        ops.normed_linear(x, [weight], EPS, biases=[torch.ones(3), torch.ones(3)])
