"""The plain residual stream: x ← x + f(norm(x)), which is what `TokenMixer` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from golden_cases import assembled
from mixerzoo import Mixer, Site
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (ZooCase("residual"), ZooCase("residual", model={**LOOPED, **POST_ROPE}))
OPTIONS = st.just({})


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: TokenMixer(embedding)


def begin_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Begin:
    """The reference with the parameters of a checkpoint of the reference implementations."""
    return lambda embedding, token: TokenMixer(embedding)


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream."""
    return mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    return 0


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    return ()


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, checkpoints=assembled("vanilla"))
