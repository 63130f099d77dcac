"""Triton's compiler takes every kernel for a GPU, where there is one or not: its interpreter takes more than that."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from operations import NAMES, gradients, operation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton's interpreter compiles nothing"),
]


@pytest.fixture(params=[80, 90], ids="sm_{}".format)
def seen(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """Kernels that a launch has compiled for a GPU in place of running them."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    names = set()
    driver = mock.Mock()
    driver.active.get_current_target.return_value = GPUTarget("cuda", request.param, 32)
    # What is compiled is kept by the device.
    driver.active.get_current_device.return_value = driver

    def compiles(kernel: Any, grid: tuple[int, ...]) -> Any:
        names.add(kernel.fn.__name__)
        return functools.partial(kernel.warmup, grid=grid)

    with (
        mock.patch.object(triton.runtime.jit, "driver", driver),
        mock.patch.object(triton.JITFunction, "__getitem__", compiles),
    ):
        yield names


def test_kernels_compile_for_a_gpu(seen: set[str]) -> None:
    from mixerzoo.ops import programs, stream_programs

    # A part of a tile and a whole one.
    for num_sources, size in ((3, 6), (7, 256)):
        for dtypes in (
            [torch.float64] * 2,
            [torch.float32] * 2,
            [torch.bfloat16] * 2,
            [torch.float16] * 2,
            [torch.float32, torch.bfloat16],
        ):
            for name in NAMES:
                gradients(operation(name, num_sources, 4, size, dtypes), "kernel")
    assert seen == {name for module in (programs, stream_programs) for name in vars(module) if name.endswith("_kernel")}
