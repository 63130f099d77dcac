"""What ``train.precision`` needs of the machine, and the products in float8."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mixerzoo.errors import BackendError
from mixerzoo.model import Decoder
from mixerzoo.recipe import Precision

#: The first GPUs that multiply in float8: Ada and Hopper.
_FLOAT8_CAPABILITY = (8, 9)
#: What float8 products ask of every size of a matrix.
_MULTIPLE = 16


def check_precision(precision: Precision) -> None:
    """Refuse a precision that cannot be had here.

    Args:
        precision: ``train.precision``.

    Raises:
        BackendError: says why and what to choose instead.
    """
    if precision not in ("fp16", "float8"):
        return
    if not torch.cuda.is_available():
        raise BackendError(
            f"train.precision {precision} needs a CUDA device, and none is in use here; set it to float32, bf16 or "
            "bf16_weights"
        )
    if precision == "fp16":
        return
    if torch.cuda.get_device_capability() < _FLOAT8_CAPABILITY:
        raise BackendError(
            "train.precision float8 needs a GPU of compute capability 8.9 or more, and "
            f"{torch.cuda.get_device_name()} has less; set it to bf16"
        )
    if importlib.util.find_spec("torchao") is None:
        raise BackendError(
            'train.precision float8 needs torchao, which is not installed; run `pip install "mixerzoo[float8]"`, or '
            "set it to bf16"
        )


class Float8:
    """Lets torchao multiply the matrices of a decoder's layers in float8; the weights stay the decoder's own.

    Matrices with a size that is no multiple of 16 are left alone, as are embedding, head and mixer.

    Args:
        decoder: changed in place, before it is compiled.
        options: of torchao's ``Float8LinearConfig``.
    """

    def __init__(self, decoder: Decoder, **options: Any) -> None:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        layers = decoder.model.layers
        before = _linears(layers)
        convert_to_float8_training(
            layers,
            module_filter_fn=lambda module, name: not any(size % _MULTIPLE for size in module.weight.shape),
            config=Float8LinearConfig(**options),
        )
        self._swaps = [
            (parent, name, ordinary, getattr(parent, name))
            for parent, name, ordinary in before
            if getattr(parent, name) is not ordinary
        ]

    def __len__(self) -> int:
        """How many matrices are multiplied in float8."""
        return len(self._swaps)

    def take_out(self) -> None:
        """Let the decoder multiply as ever."""
        for parent, name, ordinary, _ in self._swaps:
            setattr(parent, name, ordinary)

    @contextmanager
    def without(self) -> Iterator[None]:
        """A block in which the decoder multiplies as ever."""
        self.take_out()
        try:
            yield
        finally:
            for parent, name, _, float8 in self._swaps:
                setattr(parent, name, float8)


def _linears(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Every linear map below a module, with what it hangs on and under which name."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
