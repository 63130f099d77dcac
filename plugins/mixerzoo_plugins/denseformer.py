"""DenseFormer (arXiv 2402.02622): after a block, a learned weighted sum of all earlier block outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    MixingWeights,
    Neutral,
    ReferenceReading,
    Site,
    held_sources,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of DenseFormer."""

    dilation: int = Field(1, ge=1, description="k: average only over depths congruent to the present one modulo k.")
    period: int = Field(1, ge=1, description="p: average only after every p-th block; at most the depth.")


class State(NamedTuple):
    """The stream inside the current block, and the raw block outputs that a later average reads."""

    x: Tensor
    history: tuple[Tensor, ...]


class DenseFormer(Mixer[Config]):
    """Depth-weighted average after each block.

    Depth t counts unrolled blocks; X_0 is the embedding and X_t the raw output of block t.
    """

    name = "denseformer"
    card = MixerCard(
        title="DenseFormer",
        summary="After a block, a learned weighted sum of all earlier block outputs replaces the stream.",
        paper="arXiv 2402.02622",
        equation="X_t = block_t(y_{t−1})\ny_t = Σ_{j ≤ t, j ≡ t mod k} a_{t,j}·X_j  if t mod p = 0, else X_t",
        family="depth-weighted",
        acts_on="hidden states, after each block",
        parameters="Σ_{t ≤ L, p | t} (⌊t/k⌋ + 1)",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="up to (L+1)·D·e",
        neutral="at initialisation (a_{t,t} = 1, others 0), bit for bit",
        neutral_settings=(Neutral(),),
        notes="In a looped decoder t counts unrolled blocks, so every loop has weights of its own.",
    )
    reference_keys = frozenset({"denseformer_dwa_dilation", "denseformer_dwa_period"})

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        depths = range(1, shape.num_steps + 1)
        #: depth t → the depths j that its average reads, ascending, t last.
        self.averaged = {
            t: tuple(range(t % config.dilation, t + 1, config.dilation)) for t in depths if t % config.period == 0
        }
        if not self.averaged:
            raise MixerError(
                f"denseformer: period {config.period} is longer than the decoder, which runs {shape.num_steps} layers, "
                "so that nothing would be averaged; set a shorter one"
            )
        #: depth t → the earlier depths whose outputs are still held after block t, ascending.
        self.held = held_sources([(), *(self.averaged.get(t, ()) for t in depths)])
        self.weights = nn.ParameterDict(
            {str(t): nn.Parameter(torch.empty(len(read))) for t, read in self.averaged.items()}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights.values():
            nn.init.zeros_(weight)
            nn.init.ones_(weight[-1:])

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, (ops.shared(x),) if self.held[0] else ())

    def read(self, state: State, site: Site) -> Tensor:
        return state.x

    def write(self, state: State, site: Site, y: Tensor) -> State:
        x = state.x + y
        if site.branch == "attention":
            return State(x, state.history)
        t, x = site.step + 1, ops.shared(x)
        outputs = self._outputs(state, t, x)
        if t in self.averaged:
            x = ops.weighted_sum([outputs[j] for j in self.averaged[t]], self.weights[str(t)])
        return State(x, tuple(outputs[j] for j in self.held[t]))

    def finish(self, state: State) -> Tensor:
        return state.x

    def write_weights(self, state: State, site: Site, y: Tensor) -> MixingWeights | None:
        t = site.step + 1
        if site.branch == "attention" or t not in self.averaged:
            return None
        outputs = self._outputs(state, t, state.x + y)
        return MixingWeights(self.weights[str(t)], tuple(outputs[j] for j in self.averaged[t]))

    def _outputs(self, state: State, t: int, x: Tensor) -> dict[int, Tensor]:
        """Depth → output, of those that are held after block t − 1 and that of block t, x."""
        return {**dict(zip(self.held[t - 1], state.history, strict=True)), t: x}

    def flops_per_token(self) -> int:
        return 2 * self.shape.hidden_size * sum(len(read) for read in self.averaged.values())

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "attention":
            return ()
        sites = self.shape.sites()
        return tuple(None if j == 0 else sites[2 * j - 1] for j in self.averaged.get(site.step + 1, ()))

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        prefix = "model.densetransformer_dwa.alphas."
        alphas = [name for name in tensors if name.startswith(prefix)]
        if not alphas and config.get("baseline_mode") != "denseformer":
            return None
        return ReferenceReading(
            options={
                "dilation": config.get("denseformer_dwa_dilation", 1),
                "period": config.get("denseformer_dwa_period", 1),
            },
            names={name: f"weights.{int(name.removeprefix(prefix)) + 1}" for name in alphas},
            unused=frozenset(name for name in alphas if list(tensors[name]) == [0]),
        )


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [DenseFormer]
