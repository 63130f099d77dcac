"""U-net skips (modded-nanogpt): the upper half of the layers gets the outputs of the lower half, mirrored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixerError,
    Neutral,
    Site,
    held_sources,
    hookimpl,
)


class Config(MixerConfig):
    """Options of the U-net skips."""

    backout: float | None = Field(
        None,
        description=(
            "Initial λ_b of the backout, which subtracts the output of the middle layer at the end "
            "(nanochat: 0.2); default: no backout."
        ),
    )


class State(NamedTuple):
    """The stream, and the layer outputs that are added or subtracted later, by rising depth."""

    x: Tensor
    held: tuple[Tensor, ...]


class UNet(Mixer[Config]):
    """Skips between mirrored depths.

    Depth t counts unrolled layers: h_t is the output of layer t, h_0 the embedding.
    """

    name = "unet"
    card = MixerCard(
        title="U-net skips",
        summary="Each layer of the upper half gets the output of its mirror image in the lower half, weighted.",
        paper="github.com/KellerJordan/modded-nanogpt",
        equation=("h_{m+i} ← h_{m+i} + w_i·h_{m−i}  for 0 ≤ i < m, m = ⌊L/2⌋\nbackout: h_L ← h_L − λ_b·h_{m+1}"),
        family="residual",
        acts_on="hidden states, before each layer of the upper half; backout: before the final norm",
        parameters="⌊L/2⌋, and 1 with backout",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="max(1, ⌊L/2⌋)·D·e (with backout up to one stream more)",
        neutral="no backout, at initialisation (w = 0), bit for bit",
        neutral_settings=(Neutral(options={"backout": None}),),
        notes=(
            "i = 0 pairs the middle with itself and scales the stream by 1 + w_0, as in modded-nanogpt; an odd "
            "depth leaves its last layer without a skip. Skips start at 0, where modded-nanogpt starts them at 1. "
            "The backout takes the middle layer's output before a skip is added to it. L counts unrolled layers."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        middle = shape.num_steps // 2
        #: depth t → i of the skip that is added to h_t.
        self.skip_at = {middle + i: i for i in range(middle)}
        #: depth t → the lower depth whose output is added there.
        self.mirror = {middle + i: middle - i for i in range(middle)}
        #: Depth whose output the backout subtracts.
        self.backout_depth = None if config.backout is None else middle + 1
        if self.backout_depth is not None and self.backout_depth >= shape.num_steps:
            raise MixerError(
                f"backout subtracts the output of layer {middle + 1} at the end of a deeper decoder, and this one has "
                f"{shape.num_steps}; it needs at least 3 layers"
            )
        reads = [{self.mirror[t]} - {t} if t in self.mirror else set() for t in range(shape.num_steps + 1)]
        if self.backout_depth is not None:
            reads[-1].add(self.backout_depth)
        #: depth t → the depths whose outputs are held once layer t is done, ascending.
        self.held = held_sources(reads)
        if middle:
            self.skip = nn.Parameter(torch.empty(middle))
        if config.backout is not None:
            # Of shape [1]: fully_shard takes no scalars.
            self.backout = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        if self.skip_at:
            nn.init.zeros_(self.skip)
        if self.config.backout is not None:
            nn.init.constant_(self.backout, self.config.backout)

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, ())

    def read(self, state: State, site: Site) -> Tensor:
        return state.x

    def write(self, state: State, site: Site, y: Tensor) -> State:
        x = state.x + y
        if site.branch == "attention":
            return State(x, state.held)
        t = site.step + 1
        outputs = dict(zip(self.held[t - 1], state.held, strict=True))
        outputs[t] = x
        if t in self.skip_at:
            x = torch.addcmul(x, self.skip[self.skip_at[t]], outputs[self.mirror[t]])
        if t == self.shape.num_steps and self.backout_depth is not None:
            x = torch.addcmul(x, self.backout, outputs[self.backout_depth], value=-1)
        return State(x, tuple(outputs[s] for s in self.held[t]))

    def finish(self, state: State) -> Tensor:
        return state.x

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size * (len(self.skip_at) + (self.backout_depth is not None))

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        sites = self.shape.sites()
        if site.branch == "attention" and site.step in self.mirror:
            # The skip at depth t is part of what layer t reads.
            return (sites[2 * self.mirror[site.step] - 1],)
        if site == sites[-1] and self.backout_depth is not None:
            return (sites[2 * self.backout_depth - 1],)
        return ()


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [UNet]
