"""Clause 2.6 blames no mixer for what its state holds, only for what comes of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixerzoo import Context, Site
from mixerzoo.testing import Case
from mixerzoo.testing.checks.decoding import last_token
from mixerzoo.testing.large import large_cases
from mixerzoo_plugins.attn_res import AttnRes
from right import Stream


class Largest(Stream):
    """Keeps the largest output of each token, at first none, and whether it is positive."""

    name = "largest"

    def start(self, x: Tensor, context: Context) -> Any:
        none = torch.full_like(x[..., :1], -torch.inf)
        return x, none, none > 0

    def read(self, state: Any, site: Site) -> Tensor:
        x, largest, positive = state
        stream: Tensor = torch.where(positive, x / (1 + largest.abs()), x)
        return stream

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        largest = torch.maximum(state[1], y.amax(-1, keepdim=True))
        return state[0] + y, largest, largest > 0

    def finish(self, state: Any) -> Tensor:
        x: Tensor = state[0]
        return x

    def last_token(self, state: Any) -> Any:
        # Before the first sublayer there is nothing to gain.
        return None if state[1].isneginf().any() else super().last_token(state)


def test_a_state_may_hold_masks_and_infinities_and_be_narrowed_at_times() -> None:
    last_token(Largest, Case(model=SMALL))


def test_a_state_may_hold_other_things_for_one_token() -> None:
    # Long prompts are read ahead of, one token is not.
    (case,) = large_cases(AttnRes, ("varied",))[:1]
    last_token(AttnRes, case)


SMALL = {"num_layers": 3, "hidden_size": 16, "intermediate_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
