"""Small caches, and what is put into them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixerzoo import DecoderShape, KVCache, Plan, Tail

HEADS, HEAD_DIM = 2, 3


def shape(num_steps: int) -> DecoderShape:
    return DecoderShape(
        hidden_size=8,
        num_layers=num_steps,
        num_heads=4,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        order=tuple(range(num_steps)),
        norm_eps=1e-5,
        vocab_size=11,
    )


def new_cache(plan: Plan, batch_size: int = 1, **options: Any) -> KVCache:
    return KVCache(plan, shape(len(plan.order)), batch_size, dtype=options.pop("dtype", torch.float64), **options)


def windowed(*windows: int | None) -> Plan:
    """Every step owns its slots."""
    steps = tuple(range(len(windows)))
    return Plan.borrowing(order=steps, k_slot=steps, v_slot=steps, windows=windows)


def with_tail(length: int, *windows: int | None, width: int = 2) -> Plan:
    """`windowed`, and a tail."""
    return replace(windowed(*windows), tail=Tail(length, width))


def vectors(batch_size: int, num_tokens: int, first: float = 1.0, width: int = 2) -> Tensor:
    """[B, T, width] of numbers that are all different, and none 0."""
    size = (batch_size, num_tokens, width)
    return first + torch.arange(batch_size * num_tokens * width, dtype=torch.float64).view(size)


def numbered(batch_size: int, num_tokens: int, first: float = 0.0) -> Tensor:
    """[B, G, T, d] of numbers that are all different."""
    size = (batch_size, HEADS, num_tokens, HEAD_DIM)
    return first + torch.arange(batch_size * HEADS * num_tokens * HEAD_DIM, dtype=torch.float64).view(size)


def feed(cache: KVCache, k: Tensor, v: Tensor | None = None) -> list[tuple[Tensor | None, Tensor | None]]:
    """One forward: append the same keys and values to every slot, and advance."""
    v = k if v is None else v
    plan, seen = cache.plan, []
    for step in range(len(plan.order)):
        own_k, own_v = (k if plan.owns_k(step) else None), (v if plan.owns_v(step) else None)
        seen.append(cache.append(step, own_k, own_v))
    cache.advance(k.size(2))
    return seen
