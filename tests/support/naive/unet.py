"""U-net skips (modded-nanogpt) and backout (nanochat).

h_t is the output of layer t, counted from 1, h_0 the embedding; L layers, m = ⌊L/2⌋. Layer m + i + 1 reads
h_{m+i} + w_i·h_{m−i} for i = 0 … m − 1. Backout: the head reads h_L − λ·h_{m+1}.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer

CASES = (
    ZooCase("unet"),
    ZooCase("unet", {"backout": 0.2}, POST_ROPE),
    ZooCase("unet", {"backout": 0.5}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"backout": st.sampled_from([None, 0.0, 0.2])})


class UNet(TokenMixer):
    """Skips from the lower half.

    Args:
        embedding: of the token [D].
        num_layers: L.
        skip: w [m].
        backout: λ, or None for no backout.
    """

    def __init__(self, embedding: Tensor, num_layers: int, skip: Tensor, backout: Tensor | None) -> None:
        super().__init__(embedding)
        self.middle, self.skip, self.backout = num_layers // 2, skip, backout
        self.outputs = [embedding]

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        i = step - self.middle
        if branch == "attention" and 0 <= i < self.middle:
            self.x = self.x + self.skip[i] * self.outputs[self.middle - i]
        return self.x

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + y
        if branch == "mlp":
            self.outputs.append(self.x)

    def finish(self) -> Tensor:
        if self.backout is None:
            return self.x
        return self.x - self.backout * self.outputs[self.middle + 1]


def begin(mixer: Mixer) -> Begin:
    state, num_layers = mixer.state_dict(), mixer.shape.num_steps
    skip = state.get("skip", torch.zeros(0))
    return lambda embedding, token: UNet(embedding, num_layers, skip, state.get("backout"))


def reads(mixer: Mixer) -> list[tuple[int, int]]:
    """(s, t) for every h_s that is added or subtracted when layer t is done."""
    num_layers = mixer.shape.num_steps
    middle = num_layers // 2
    found = [(middle - i, middle + i) for i in range(middle)]
    if mixer.config.model_dump()["backout"] is not None:
        found.append((middle + 1, num_layers))
    return found


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """After each sublayer: the stream, and each other output that is still to be read."""
    most = 1
    changed = {t for _, t in reads(mixer)}
    for done in range(1, mixer.shape.num_steps + 1):
        within = {s for s, t in reads(mixer) if s < done <= t}
        after = {s for s, t in reads(mixer) if s <= done < t}
        if done not in changed:
            after.discard(done)  # it is the stream
        most = max(most, 1 + len(within), 1 + len(after))
    return most * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """A product and a sum for every channel and read."""
    return 2 * mixer.shape.hidden_size * len(reads(mixer))


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """A skip belongs to the layer that begins with it, the backout to the last sublayer."""
    sites, last = mixer.shape.sites(), mixer.shape.num_steps
    if site.branch == "attention":
        read = [s for s, t in reads(mixer) if t == site.step and t < last]
    else:
        read = [s for s, t in reads(mixer) if t == last == site.step + 1]
    return tuple(sites[2 * s - 1] for s in read)


def initial(mixer: Mixer) -> dict[str, float]:
    backout = mixer.config.model_dump()["backout"]
    values = {"skip": 0.0} if mixer.shape.num_steps > 1 else {}
    return values if backout is None else {**values, "backout": backout}


REFUSED = (Case({**SMALL, "num_layers": 2}, {"backout": 0.2}),)
REFERENCE = Reference(begin, in_flight_bytes, flops_per_token, sources, initial, refused=REFUSED)
