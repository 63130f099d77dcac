"""FusedKV-Lite (arXiv 2512.03870): the plain residual stream. Of L layers the first ⌈L/2⌉ have keys and values of their
own; those above attend to the keys of the last of these, and to the values of the very first."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from case import LOOPED, POST_ROPE, ZooCase, planned_reads
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from naive.residual import begin, flops_per_token, in_flight_bytes, sources

CASES = (ZooCase("fusedkv_lite"), ZooCase("fusedkv_lite", model={**LOOPED, **POST_ROPE}))
OPTIONS: st.SearchStrategy[dict[str, Any]] = st.just({})


def slots(step: int, num_steps: int) -> tuple[int, int, int | None]:
    """Whose keys and whose values a step attends to, and the window in which it sees them."""
    storing = math.ceil(num_steps / 2)
    if step < storing:
        return step, step, None
    return storing - 1, 0, None


def plan(mixer: Mixer) -> dict[str, tuple[Any, ...]]:
    """Whose keys and values each step attends to."""
    return planned_reads(slots, mixer)


REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, plan=plan)
