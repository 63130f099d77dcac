"""What sharding leaves on each of several devices, as `mixerzoo.training.parallel` shards."""

from __future__ import annotations

import torch

from mixerzoo.model import Decoder
from mixerzoo.recipe.parallel import FsdpConfig

#: Layers whose weights are gathered at once: the next one's while one computes.
_AHEAD = 2


def share(size: int, devices: int) -> int:
    """The largest share of so many bytes.

    Args:
        size: bytes of all.
        devices: among how many they are shared out.
    """
    return -(-size // devices)


def gathered_bytes(decoder: Decoder, options: FsdpConfig) -> int:
    """Bytes that a device holds in the middle of a step beside its share.

    The weights outside the layers and their gradients, from beginning to end; the weights of two layers, or of all
    where they are kept, and the gradients of one.

    Args:
        decoder: on any device.
        options: how it is sharded.
    """
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder.model.layers]
    rest = sum(decoder.num_parameters()) - sum(layers)
    dtype = torch.bfloat16 if options.mixed_precision else torch.float32
    kept = sum(sorted(layers)[-_AHEAD:]) if options.reshard_after_forward else sum(layers)
    return 2 * rest * torch.float32.itemsize + (kept + max(layers)) * dtype.itemsize
