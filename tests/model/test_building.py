"""Building a decoder on the meta device fills nothing, which would take half of the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo import Decoder, ModelConfig
from mixerzoo_plugins.residual import Residual

CONFIG = ModelConfig(hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, vocab_size=5)


class Filled(TorchDispatchMode):
    """Counts what is filled with random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "uniform_"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("device", "expected"), [("meta", 1), ("cpu", 1 + 2 * 7)])
def test_projections_on_the_meta_device_are_not_filled(device: str, expected: int) -> None:
    with Filled() as filled, torch.device(device):
        Decoder(CONFIG, Residual)
    # The head is not among the layers.
    assert filled.count == expected
