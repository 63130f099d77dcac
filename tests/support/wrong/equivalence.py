"""Neutral settings that are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
)
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from wrong.basis import caught_by


@caught_by("neutral_settings")
class NotNeutralAtDepthOne(DepthAttention):
    """A null source takes part of the value even where there is no other."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, q, k, v = call.site, call.q, call.k, call.v
        return super().mix_kv(state, site, q, k, 0.5 * v)


@caught_by("neutral_settings")
class NotNeutralAtInit(DenseFormer):
    """Starts from a uniform average."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.constant_(weight, 1 / weight.numel())
