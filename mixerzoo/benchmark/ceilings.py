"""How fast a device is at best, measured on the spot, and the time that a phase would take at that speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixerzoo.benchmark.clock import seconds
from mixerzoo.model import Decoder, forward_flops

_TRIES = 5
#: Rows of a square product, and bytes that are copied: large enough for the device to be busy.
_SIZES = {"cpu": (1024, 2**27), "cuda": (8192, 2**30)}


@dataclass(frozen=True)
class Ceilings:
    """What a device reached.

    Attributes:
        flops_per_second: of a product of two square matrices in the dtype of the arithmetic.
        bytes_per_second: read and written by a copy.
    """

    flops_per_second: float
    bytes_per_second: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each."""
        return Ceilings(
            max(self.flops_per_second, other.flops_per_second), max(self.bytes_per_second, other.bytes_per_second)
        )

    def floor(self, flops: int, nbytes: int) -> float:
        """Seconds in which a device with these ceilings could do so much: the longer of arithmetic and memory."""
        return max(flops / self.flops_per_second, nbytes / self.bytes_per_second)


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both, the best of some tries.

    Args:
        device: which one.
        dtype: of the product.
    """
    rows, size = _SIZES["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(rows, rows, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(_TRIES))
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(_TRIES))
    return Ceilings(2 * rows**3 / product, 2 * size / copy)


def training_work(decoder: Decoder, batch: int, tokens: int, kept: int) -> tuple[int, int]:
    """FLOPs and bytes of a forward and backward.

    The backward takes twice the forward's products, and what it computes again does not count. Weights are read in
    both, their gradients are written; what the forward keeps is written and read.

    Args:
        decoder: the model.
        batch: rows.
        tokens: of a row.
        kept: bytes that the forward keeps.
    """
    return 3 * batch * forward_flops(decoder, tokens), 3 * _nbytes(list(decoder.parameters())) + 2 * kept


def prefill_work(decoder: Decoder, batch: int, tokens: int) -> tuple[int, int]:
    """FLOPs and bytes of reading a prompt, with the logits of its last token: weights are read, the cache is written.

    Args:
        decoder: the model.
        batch: rows.
        tokens: of a row.
    """
    flops = batch * forward_flops(decoder, tokens, last_only=True)
    return flops, _weights_read(decoder) + batch * _cache(decoder, tokens)


def decoding_work(decoder: Decoder, batch: int, past: int) -> tuple[int, int]:
    """FLOPs and bytes of one token of every row: weights and cache are read.

    Args:
        decoder: the model.
        batch: rows.
        past: tokens before.
    """
    flops = batch * forward_flops(decoder, 1, past=past)
    return flops, _weights_read(decoder) + batch * _cache(decoder, past)


def _cache(decoder: Decoder, tokens: int) -> int:
    return decoder.plan.cache_bytes(decoder.shape, tokens, decoder.lm_head.weight.dtype)


def _weights_read(decoder: Decoder) -> int:
    """Of the embedding a few rows alone are read, unless the head shares it."""
    embedding = decoder.model.embed_tokens.weight
    return _nbytes([each for each in decoder.parameters() if each is not embedding or each is decoder.lm_head.weight])


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
