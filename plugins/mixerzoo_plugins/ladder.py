"""Ladder residual (arXiv 2501.06589): a sublayer does not wait for the output of the one before it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mixerzoo import Context, Mixer, MixerCard, Site, hookimpl


class State(NamedTuple):
    """The sum of all outputs but the newest, and the newest (None before the first), both [B, T, D]."""

    x: Tensor
    newest: Tensor | None


class Ladder(Mixer):
    """Reads the stream as it was before the newest output, so that its communication can overlap."""

    name = "ladder"
    card = MixerCard(
        title="Ladder residual",
        summary="Every sublayer reads the sum of all outputs but the newest.",
        paper="arXiv 2501.06589",
        equation="y_i = f_i(norm(x_{i−2})),  x_i = x_{i−1} + y_i  (x_{−1} = x_0, the embedding)",
        family="residual",
        acts_on="hidden states, before each sublayer",
        parameters="0",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="2·D·e",
        notes="Of use where a sublayer's output is summed over devices. The final norm reads the sum of all outputs.",
    )

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, None)

    def read(self, state: State, site: Site) -> Tensor:
        return state.x

    def write(self, state: State, site: Site, y: Tensor) -> State:
        return State(self.finish(state), y)

    def finish(self, state: State) -> Tensor:
        return state.x if state.newest is None else state.x + state.newest


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Ladder]
