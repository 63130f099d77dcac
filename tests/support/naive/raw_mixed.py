"""Keys and values are mixed with those of the step before, before head norm and RoPE: `adhoc.RawMixed`."""

from __future__ import annotations

from torch import Tensor

from case import POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (ZooCase("raw_mixed"), ZooCase("raw_mixed", model=POST_ROPE))


class RawMixed(TokenMixer):
    """k ← k + k_before / 2 and v ← v − v_before / 2, of raw projections."""

    before: tuple[list[Tensor], list[Tensor]] | None = None

    def mix_raw_kv(self, step: int, layer: int, k: list[Tensor], v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        raw = k, v
        if self.before is not None:
            k = [own + other / 2 for own, other in zip(k, self.before[0], strict=True)]
            v = [own - other / 2 for own, other in zip(v, self.before[1], strict=True)]
        self.before = raw
        return k, v


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: RawMixed(embedding)


REFERENCE = Reference(begin)
