"""YOCO (arXiv 2405.05254): the plain residual stream. Of L layers the first M see a window. Layer M makes keys and
values from what those give out, and all layers from M on attend to them over the whole past.

M : L − M = self_layers : cross_layers, rounded down.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from case import LOOPED, POST_ROPE, SMALL, ZooCase, planned_reads
from mixerzoo import Mixer
from mixerzoo.testing import Case, Reference
from naive.residual import begin, flops_per_token, in_flight_bytes, sources

CASES = (
    ZooCase("yoco"),
    ZooCase("yoco", {"window": 2}, POST_ROPE),
    ZooCase("yoco", {"window": 3, "self_layers": 3}),
    ZooCase("yoco", {"window": 2, "cross_layers": 4}, LOOPED),
)
OPTIONS = st.fixed_dictionaries(
    {"window": st.integers(2, 5), "self_layers": st.integers(1, 4), "cross_layers": st.integers(1, 4)}
)


def slots(
    step: int, num_steps: int, window: int = 1024, self_layers: int = 1, cross_layers: int = 1
) -> tuple[int, int, int | None]:
    """Whose keys and whose values a step attends to, and the window in which it sees them."""
    middle = int(num_steps * Fraction(self_layers, self_layers + cross_layers))
    if step < middle:
        return step, step, window
    return middle, middle, None


def plan(mixer: Mixer) -> dict[str, tuple[Any, ...]]:
    """Whose keys and values each step attends to; of the slots that are written all but the last have the window."""
    options, num_steps = mixer.config.model_dump(), mixer.shape.num_steps
    windows = tuple(slots(step, num_steps, **options)[2] for step in range(num_steps))
    return {**planned_reads(slots, mixer), "windows": windows}


#: No self-decoder.
REFUSED = (Case({**SMALL, "num_layers": 3}, {"self_layers": 1, "cross_layers": 3}),)
REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, refused=REFUSED, plan=plan)
