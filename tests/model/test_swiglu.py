"""The gate of an MLP: the same bits as the equation, of which less is kept."""

from __future__ import annotations

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


def test_compiled_it_is_the_equation() -> None:
    given = leaves(torch.float32)
    with forms.forced(None):
        compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")
        zoo.assert_close(compiled(*given), F.silu(given[0]) * given[1], 1e-6)


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
