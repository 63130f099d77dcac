"""One slot of the cache for all runs of a layer: `adhoc.Rewriting`.

What the slot has for a token becomes k + k_before / 2 and v − v_before / 2 with every run, so a run attends to what the
last run of the tokens before left there, and to its own.
"""

from __future__ import annotations

from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (
    ZooCase("rewriting", model=LOOPED),
    ZooCase("rewriting", model={**POST_ROPE, "loop": LOOPED["loop"].model_copy(update={"count": 3})}, label="thrice"),
)


class Rewriting(TokenMixer):
    """The residual stream, and what each layer's slot has for this token."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__(embedding)
        self.slots: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        if layer in self.slots:
            k_before, v_before = self.slots[layer]
            k = [new + old / 2 for new, old in zip(k, k_before, strict=True)]
            v = [new - old / 2 for new, old in zip(v, v_before, strict=True)]
        self.slots[layer] = k, v
        return k, v


def begin(mixer: Mixer) -> Begin:
    return lambda embedding, token: Rewriting(embedding)


REFERENCE = Reference(begin)
