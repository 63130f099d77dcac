"""The plain residual stream of every Transformer: the baseline that each other mixer is compared with."""

from __future__ import annotations

from torch import Tensor

from mixerzoo import Context, Mixer, MixerCard, Neutral, Site, hookimpl


class Residual(Mixer):
    """x ← x + f(norm(x)). The state is the stream x [B, T, D]."""

    name = "residual"
    card = MixerCard(
        title="Residual stream",
        summary="Every sublayer adds its output to one running sum.",
        paper="",
        equation="x ← x + f(norm(x))",
        family="residual",
        acts_on="hidden states, after each sublayer",
        parameters="0",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e",
        neutral="always",
        neutral_settings=(Neutral(),),
    )

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y

    def finish(self, state: Tensor) -> Tensor:
        return state


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Residual]
