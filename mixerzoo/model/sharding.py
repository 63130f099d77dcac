"""Decoders whose weights several processes share out (FSDP2), as the rooms above ask of them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes share out a model's weights.

    Args:
        model: or a part of it.
    """
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def compute_device(weight: Tensor) -> torch.device:
    """Where products with a weight are computed, which is not where a share of it lies that left its GPU.

    Args:
        weight: sharded or not.
    """
    if dist.is_initialized():
        from torch.distributed.tensor import DTensor

        if isinstance(weight, DTensor):
            return torch.device(weight.device_mesh.device_type)
    return weight.device


def drop_gathered(model: nn.Module) -> None:
    """Leave each process its share alone after a forward without a backward.

    Args:
        model: sharded or not.
    """
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(model, FSDPModule)
        model.reshard()
