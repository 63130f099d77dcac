"""Cross-Layer Attention (arXiv 2405.12981): the plain residual stream; every ``group`` consecutive layers attend to the
keys and values of the first of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from case import LOOPED, POST_ROPE, ZooCase, planned_reads
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from naive.residual import begin, flops_per_token, in_flight_bytes, sources

CASES = (
    ZooCase("cla"),
    ZooCase("cla", {"group": 3}, POST_ROPE),
    ZooCase("cla", {"group": 4}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"group": st.integers(1, 6)})


def slots(step: int, num_steps: int, group: int = 2) -> tuple[int, int, int | None]:
    """Whose keys and whose values a step attends to, and the window in which it sees them."""
    first = step
    while first % group:
        first -= 1
    return first, first, None


def plan(mixer: Mixer) -> dict[str, tuple[Any, ...]]:
    """Whose keys and values each step attends to."""
    return planned_reads(slots, mixer)


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, plan=plan)
