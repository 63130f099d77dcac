"""What came before, as our own decoder has it."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.mixer import DepthEntries, Plan
from mixerzoo.model.backends import (
    AttentionMask,
    BackendName,
    attention_weights,
    backend_function,
    needs_mask,
    ungrouped,
)
from mixerzoo.model.cache import KVCache
from mixerzoo.model.past import KeysAndValues, Past
from mixerzoo.ops import attention_with_depth


class CachedPast(Past):
    """A `KVCache`, or nothing, and an attention backend over it.

    Args:
        plan: whose windows the masks have.
        cache: what came before; None where nothing did and nothing is kept.
        masks: by window.
        backend: computes attention.
    """

    def __init__(
        self, plan: Plan, cache: KVCache | None, masks: dict[int | None, AttentionMask], backend: BackendName
    ) -> None:
        self.plan, self.cache, self.masks, self.backend = plan, cache, masks, backend
        self.stores = cache is not None

    def store(self, slot: int | None, k: Tensor | None, v: Tensor | None) -> KeysAndValues:
        if self.cache is None or slot is None:
            return KeysAndValues(k, v)
        return KeysAndValues(*self.cache.append(slot, k, v))

    def attend(self, step: int, q: Tensor, k: Tensor, v: Tensor, scale: float, depth: DepthEntries | None) -> Tensor:
        mask, entries = self.masks[self.plan.window(step)], None if depth is None else depth.each()
        if mask.at_a_time is None or (entries is None and not needs_mask(self.backend, q, k, v, mask)):
            return self._attend(q, k, v, mask, scale, entries)
        if self.backend == "sdpa" and entries is None:
            # Once for all parts.
            k, v = ungrouped(q, k, v, masked=True)
        parts = []
        for queries, keys, each in mask.parts():
            own = None if entries is None else tuple(tuple(x[:, :, queries] for x in xs) for xs in entries)
            parts.append(self._attend(q[:, :, queries], k[:, :, keys], v[:, :, keys], each, scale, own))
        return torch.cat(parts, dim=2)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: AttentionMask,
        scale: float,
        entries: tuple[tuple[Tensor, ...], ...] | None,
    ) -> Tensor:
        if entries is None:
            return backend_function(self.backend)(q, k, v, mask, scale)
        return attention_with_depth(q, k, v, mask.dense, scale, *entries, causal=mask.causal)

    def weigh(self, step: int, q: Tensor, k: Tensor, scale: float) -> Tensor:
        return attention_weights(q, k, self.masks[self.plan.window(step)], scale)
