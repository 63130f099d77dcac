"""The gate of an MLP: the same bits as the equation, of which less is kept."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from mixerzoo import ModelConfig
from mixerzoo.benchmark import kept_bytes
from mixerzoo.benchmark.memory import measured_peak
from mixerzoo.model.layer import MLP
from mixerzoo.model.swiglu import swiglu
from mixerzoo.ops import forms


def leaves(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_has_the_bits_of_the_equation(dtype: torch.dtype) -> None:
    given = leaves(dtype)
    found = []
    for form in ("naive", "fused"):
        with forms.forced(form):
            y = swiglu(*given)
        found.append([y, *torch.autograd.grad(y.sin().sum(), given)])
    assert all(map(torch.equal, *found))
    assert torch.equal(found[1][0], F.silu(given[0]) * given[1])


@pytest.mark.usefixtures("forms_by_size")
@pytest.mark.parametrize("form", [None, "fused"])
def test_compiled_it_is_the_equation(form: Any) -> None:
    given = [torch.ones(2, forms.SMALLEST, requires_grad=True) for _ in range(2)]
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(module.graph)
        return module

    torch._dynamo.reset()
    with forms.forced(form):
        torch.compile(swiglu, fullgraph=True, backend=backend)(*given)
    (graph,) = graphs
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert F.silu in called
    assert operator.mul in called
    assert not any("autograd" in str(target) for target in called)


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_where_one_input_learns_autograd_keeps_no_more(learns: tuple[bool, bool]) -> None:
    given = [x.requires_grad_(each) for x, each in zip(leaves(), learns, strict=True)]
    with forms.forced("fused"):
        kept = kept_bytes(lambda: swiglu(*given).sum(), torch.device("cpu"))
    assert kept == (0 if learns[0] else given[0].nbytes)
    with forms.forced("fused"):
        assert torch.autograd.gradcheck(swiglu, given)


def test_gradients_in_batches() -> None:
    given = leaves()
    with forms.forced("fused"):
        y = swiglu(*given)
        batch = torch.ones(2, *y.shape, dtype=y.dtype)
        found = torch.autograd.grad(y, given, batch, is_grads_batched=True)
    for each, expected in zip(found, torch.autograd.grad(swiglu(*given).sum(), given), strict=True):
        zoo.assert_close(each[1], expected, 1e-12)


def test_shapes_that_broadcast() -> None:
    gate, up = leaves()
    with forms.forced("fused"), torch.no_grad():
        assert torch.equal(swiglu(gate[:1], up), F.silu(gate[:1]) * up)


def test_it_keeps_its_inputs_alone() -> None:
    given, kept = leaves(), {}
    for form in ("naive", "fused"):
        with forms.forced(form):
            kept[form] = kept_bytes(lambda: swiglu(*given).sum(), torch.device("cpu"))
    assert kept == {"naive": given[0].nbytes, "fused": 0}


def test_without_a_graph_there_is_nothing_beside_the_result() -> None:
    gate, up = (x.detach() for x in leaves())
    with forms.forced("fused"), measured_peak(torch.device("cpu")) as peak:
        y = swiglu(gate, up)
    assert peak.bytes == y.nbytes


def test_gradients_of_gradients() -> None:
    with forms.forced("fused"):
        assert torch.autograd.gradgradcheck(swiglu, leaves())


def test_inputs_of_two_dtypes() -> None:
    gate, up = leaves()[0], leaves(torch.float32)[1]
    with forms.forced("fused"):
        y = swiglu(gate, up)
    assert torch.equal(y, F.silu(gate) * up)
    y.sum().backward()
    assert up.grad is not None
    assert up.grad.dtype == torch.float32


@pytest.mark.parametrize("grad", [True, False])
def test_what_traces_an_mlp_sees_the_equation(grad: Any) -> None:
    config = ModelConfig(hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, vocab_size=4)
    with torch.set_grad_enabled(grad):
        graph = torch.fx.symbolic_trace(MLP(config)).graph
    called = [node.target for node in graph.nodes if node.op in ("call_function", "call_module")]
    assert called[0] == "gate_proj"
    assert F.silu in called
    assert called[-1] == "down_proj"
