"""Any slots and windows on the residual stream: `adhoc.Planned`. What is shared and hidden is the decoder's part."""

from __future__ import annotations

from typing import Any

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer


def planned(k_slot: tuple[int, ...], v_slot: tuple[int, ...], *windows: int | None) -> dict[str, Any]:
    """Options of `adhoc.Planned`; windows default to none."""
    return {"k_slot": k_slot, "v_slot": v_slot, "windows": windows or (None,) * len(k_slot)}


def planned_case(k_slot: tuple[int, ...], v_slot: tuple[int, ...], *windows: int | None, **model: Any) -> ZooCase:
    """A case of `adhoc.Planned`."""
    shared = [name for name, slots in (("k", k_slot), ("v", v_slot)) if len(set(slots)) < len(slots)]
    parts = ["shared_" + "".join(shared)] * bool(shared) + ["windows"] * any(windows)
    return ZooCase("planned", planned(k_slot, v_slot, *windows), model, label="-".join(parts))


#: As KV-sharing and value-residual methods use them.
CASES = (
    planned_case((0, 0, 2, 2), (0, 0, 2, 2)),
    planned_case((0, 1, 2, 3), (0, 0, 0, 0)),
    planned_case((0, 1, 2, 3), (0, 1, 2, 3), 2, None, 3, 2, **POST_ROPE),
    planned_case((0, 1, 1, 1), (0, 1, 1, 0), 3, 3, None, None),
    planned_case((0, 1, 2, 1, 2, 5), (0, 1, 2, 1, 2, 0), **LOOPED),
)


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: TokenMixer(embedding)


REFERENCE = Reference(begin)
