"""Delta Attention Residuals (arXiv 2605.18855): a router over the changes that sublayers made to the stream."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixingWeights,
    Site,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of Delta Attention Residuals."""

    block_size: int = Field(1, ge=1, description="S: changes of S sublayers are summed into one source.")


class Source(NamedTuple):
    """A change [B, T, D] of the stream, and its scores [B, T] with all queries that will read it, computed once."""

    value: Tensor
    scores: tuple[Tensor, ...]


class State(NamedTuple):
    """Between two calls.

    Attributes:
        x: the stream [B, T, D].
        sources: the finished ones.
        running: the sum [B, T, D] of the open block's outputs, if one is open.
    """

    x: Tensor
    sources: tuple[Source, ...]
    running: Tensor | None


class DepthQuery(nn.Module):
    """Query and norm gain of one site, [D] each."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(size))
        self.gain = nn.Parameter(torch.empty(size))


class DeltaAttnRes(Mixer[Config]):
    """The stream is a plain sum; what a sublayer reads is that sum and a softmax-weighted sum of its changes."""

    name = "delta_attn_res"
    card = MixerCard(
        title="Delta Attention Residuals",
        summary="Each sublayer reads the stream and a learned softmax-weighted sum of the changes made to it so far.",
        paper="arXiv 2605.18855",
        equation="h_i = x_i + Σ_j α_j·v_j,  α = softmax_j(w_i·RMSNorm_γ(v_j))\nx_{i+1} = x_i + f_i(norm(h_i)),  "
        "v_0 = x_0,  v_j = x_j − x_{j−1}",
        family="depth-weighted",
        acts_on="hidden states, before each sublayer but the first",
        parameters="max(2L − block_size, 0)·2·D",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes=(
            "(2L+1)·D·e + (L+1)·(2L−1)·4; blocks of S at most (⌊(2L−1)/S⌋ + 3)·D·e and 4 for each pair of a source and "
            "a read of it"
        ),
        notes=(
            "As the authors' code does it: what is weighed is added to the stream, the embedding is the first source, "
            "the change v_j is the output of sublayer j, and the final norm reads the stream alone. With blocks that "
            "code differs: there they close at layers, are read from a sublayer later on, and from the third on the "
            "source before is subtracted from the stream, not the stream at the block's beginning. Here a block is S "
            "sublayers and its change their sum; the open one is in the stream only. Queries start at zero, so a read "
            "starts as the stream and the mean of the sources. In a looped decoder every unrolled site has a query of "
            "its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.num_sublayers = 2 * shape.num_steps
        #: Numbers of sublayers after which a block is finished, as long as a sublayer follows that reads it.
        self.closing = frozenset(range(config.block_size, self.num_sublayers, config.block_size))
        #: By number of sublayers done before the read, where there are several sources to weigh.
        self.queries = nn.ModuleDict(
            {str(i): DepthQuery(shape.hidden_size) for i in range(config.block_size, self.num_sublayers)}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for query in self.queries.values():
            assert isinstance(query, DepthQuery)
            nn.init.zeros_(query.query)
            nn.init.ones_(query.gain)

    def start(self, x: Tensor, context: Context) -> State:
        return State(x, (self._source(x, self.config.block_size),), None)

    def read(self, state: State, site: Site) -> Tensor:
        if site.number == 0:
            return state.x
        if len(state.sources) == 1:
            return state.x + state.sources[0].value
        return state.x + ops.source_softmax(*self._read(state, site))

    def write(self, state: State, site: Site, y: Tensor) -> State:
        x, done = state.x + y, site.number + 1
        if done == self.num_sublayers:
            return State(x, (), None)
        running = y if state.running is None else state.running + y
        if done in self.closing:
            return State(x, (*state.sources, self._source(running, done)), None)
        return State(x, state.sources, running if done < max(self.closing, default=0) else None)

    def finish(self, state: State) -> Tensor:
        return state.x

    def mixing_weights(self, state: State, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        if len(state.sources) == 1:
            return None
        values, scores = self._read(state, site)
        weights = ops.source_weights(scores)
        # The stream itself comes first, as it is.
        return MixingWeights(torch.cat([torch.ones_like(weights[..., :1]), weights], dim=-1), (state.x, *values))

    def flops_per_token(self) -> int:
        flops = 0
        for done in range(1, self.num_sublayers):
            sources = 1 + sum(closed <= done for closed in self.closing)
            # A single source is added as it is.
            flops += self.shape.hidden_size * (1 if sources == 1 else 4 * sources + 1)
        return flops

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.number == 0:
            return ()
        sites = self.shape.sites()
        return (None, *(sites[closed - 1] for closed in sorted(self.closing) if closed <= site.number))

    def _source(self, value: Tensor, done: int) -> Source:
        """A source, which the reads after ``done`` sublayers and on attend to."""
        each = list(self.queries.values())[done - self.config.block_size :]
        queries, gains = ([getattr(query, name) for query in each] for name in ("query", "gain"))
        value = ops.shared(value)
        return Source(value, ops.source_scores(value, queries, gains, self.shape.norm_eps))

    def _read(self, state: State, site: Site) -> tuple[list[Tensor], list[Tensor]]:
        """The sources, and their scores with the query of a site."""
        from_last = site.number - self.num_sublayers
        return [source.value for source in state.sources], [source.scores[from_last] for source in state.sources]


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [DeltaAttnRes]
