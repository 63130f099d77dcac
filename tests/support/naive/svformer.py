"""SVFormer (arXiv 2410.17897): the plain residual stream; a layer attends to its own keys and to layer 0's values."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from case import LOOPED, POST_ROPE, ZooCase, planned_reads
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from naive.residual import begin, flops_per_token, in_flight_bytes, sources

CASES = (ZooCase("svformer"), ZooCase("svformer", model={**LOOPED, **POST_ROPE}))
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.just({})


def slots(step: int, num_steps: int) -> tuple[int, int, int | None]:
    """Whose keys and whose values a step attends to, and the window in which it sees them."""
    return step, 0, None


def plan(mixer: Mixer) -> dict[str, tuple[Any, ...]]:
    """Whose keys and values each step attends to."""
    return planned_reads(slots, mixer)


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, plan=plan)
