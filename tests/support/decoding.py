"""Caches of a decoder, and feeding it in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from mixerzoo import Decoder, KVCache

#: Lengths of the pieces that a sequence is fed in.
chunkings = st.lists(st.integers(1, 4), min_size=1, max_size=4)


#: Growing storage, or fixed storage with that much room to spare.
storages = st.none() | st.integers(0, 3)


def new_cache(decoder: Decoder, batch_size: int, length: int, spare: int | None, **options: Any) -> KVCache:
    """A cache for ``length`` tokens: growing, or fixed with ``spare`` more."""
    return decoder.new_cache(batch_size, None if spare is None else length + spare, **options)


def fed(decoder: Decoder, tokens: Tensor, chunks: list[int], cache: KVCache, **arguments: Any) -> Tensor:
    """Logits [B, T, V] of tokens that go through a cache in pieces."""
    pieces = tokens.split(chunks, dim=1)
    return torch.cat([decoder(piece, cache, **arguments) for piece in pieces], dim=1)


def owned(cache: KVCache) -> Iterator[Tensor]:
    """Every tensor of keys or values that a cache holds."""
    yield from cache._keys.values()
    yield from cache._values.values()
