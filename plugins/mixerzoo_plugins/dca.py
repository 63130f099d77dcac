"""DeepCrossAttention (arXiv 2502.06785): queries, keys and values of a block each read a sum over all earlier blocks,
with weights per channel and per token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixingWeights,
    Neutral,
    Plan,
    Site,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of DeepCrossAttention."""

    dialect: Literal["streams", "outputs"] = Field(
        "streams",
        description="streams: sources are the stream after each block, all scored by the latest one; outputs: what "
        "each block adds, scored by itself.",
    )
    num_recent: int | None = Field(
        None,
        ge=1,
        description="k of k-DCA: the last k blocks are sources of their own, those between them and the embedding "
        "are one; default all.",
    )


class State(NamedTuple):
    """Between two calls; all tensors [B, T, D].

    Attributes:
        stream: the plain residual sum of everything so far.
        x: what the MLP reads, inside a block; else the stream.
        attended: the attention's output, inside a block (outputs only); else None.
        sources: X_j that are still read: the embedding, one for the old blocks (if any), the recent blocks.
    """

    stream: Tensor
    x: Tensor
    attended: Tensor | None
    sources: tuple[Tensor, ...]


class GRN(nn.Module):
    """Generalised residual network: Σ_j (b_j + ReLU(s_j)) ⊙ X_j, with s_j = ⟨w_j, X_last⟩ or ⟨w, X_j⟩.

    Args:
        size: D.
        num_sources: N.
        streams: the dialect.
    """

    def __init__(self, size: int, num_sources: int, streams: bool) -> None:
        super().__init__()
        self.streams = streams
        #: b at which the sum is the stream: the last source alone, or all of them.
        self.neutral = (0.0 if streams else 1.0,) * (num_sources - 1) + (1.0,)
        self.bias = nn.Parameter(torch.empty(num_sources, size))
        self.score = nn.Parameter(torch.empty(num_sources, size) if streams else torch.empty(size))

    def forward(self, stream: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """Mix the sources, the last of which (streams) or the plain sum of which (outputs) is the stream."""
        return mixes([self], stream, sources)[0]

    def channels(self) -> Tensor:
        """b less what gives the stream, which neutral weights then give back bit for bit: [N, D]."""
        # No tensor of these numbers: it would be copied to the device at every mix.
        return self.bias - 1 if not self.streams else torch.cat([self.bias[:-1], self.bias[-1:] - 1])

    def weights(self, stream: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """ReLU(s) of every source, [B, T, N]."""
        if self.streams:
            scores = stream @ self.score.mT
        else:
            scores = torch.stack([source @ self.score for source in sources], dim=-1)
        # ReLU with a gradient of 1 at 0, where every score starts: with relu's own, and with that of clamp from
        # PyTorch 2.14 on, w would never move.
        return torch.where(scores < 0, 0.0, scores)


def mixes(grns: Iterable[nn.Module], stream: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """What each of several GRNs gives of the same sources."""
    weights, channels = [], []
    for grn in grns:
        assert isinstance(grn, GRN)
        weights.append(grn.weights(stream, sources))
        channels.append(grn.channels())
    return [stream + each for each in ops.weighted_sums(sources, weights, channels)]


class Dca(Mixer[Config]):
    """Each block's query, key and value inputs are weighed apart.

    X_0 is the embedding. In the dialect ``streams`` X_i is the stream after block i. In ``outputs`` it is what block
    i adds, the sum of what its attention and its MLP give, and what follows the last block is weighed too.
    """

    name = "dca"
    card = MixerCard(
        title="DeepCrossAttention",
        summary="Queries, keys and values each read their own per-channel, per-token weighted sum over earlier blocks.",
        paper="arXiv 2502.06785",
        equation=(
            "x^c = Σ_{j ≤ i} (b^c_j + ReLU(s^c_j)) ⊙ X_j  for c in q, k, v;  a = attention(x^q, x^k, x^v)\n"
            "streams: s^c_j = ⟨w^c_j, X_i⟩,  h = X_i + a,  X_{i+1} = h + MLP(h)\n"
            "outputs: s^c_j = ⟨w^c, X_j⟩,  X_{i+1} = a + MLP(x^q + a);  a fourth sum before the final norm\n"
            "k-DCA: sources X_0, X_old, X_{i−k+1} … X_i,  X_old = X_{i−k} (streams) or Σ_{0 < j ≤ i−k} X_j (outputs)"
        ),
        family="depth-weighted",
        acts_on="hidden states, before each attention (q, k and v apart); outputs: also before the final norm",
        parameters=(
            "6·D·Σ_{i=1..L−1} n_i (outputs: D·(3·Σ_{i=1..L−1} (n_i + 1) + n_L + 1)), "
            "n_i = i + 1 or min(i + 1, num_recent + 2)"
        ),
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="L·D·e, k-DCA up to (num_recent + 2)·D·e (outputs: up to (L+3)·D·e, (num_recent + 5)·D·e)",
        neutral="at initialisation (w = 0; b = 1 on the current stream, outputs: on every source), bit for bit",
        neutral_settings=(Neutral(options={"dialect": "streams"}), Neutral(options={"dialect": "outputs"})),
        dialects={
            "streams": (
                "X_j is the residual stream after block j, and every source has a w_j that is scored against the "
                "latest stream; only the inputs of query, key and value are mixed, the stream stays a plain sum"
            ),
            "outputs": (
                "the paper: X_j is what block j adds, one w scores every source by itself; the query's input also "
                "goes around the attention, and a fourth sum replaces the stream before the final norm"
            ),
        },
        notes=(
            "k-DCA: the paper sums the outputs of the old blocks; in streams the stream after the last old block, "
            "which holds that sum, stands for them. The paper's figure leaves the path around the attention open "
            "to reading: in outputs the MLP reads the query's input plus the attention's output, and a block's output "
            "is that of attention and MLP. The gradient of ReLU at 0 is taken as 1, else w would stay at its initial "
            "0. The first block reads the embedding, its only source, so it has no weights. In a looped decoder "
            "blocks count unrolled, so every loop has weights of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.streams = config.dialect == "streams"
        self.num_recent = config.num_recent or shape.num_steps
        last = shape.num_steps
        self.final = None if self.streams else self._grn(last)
        #: number i of finished blocks → what the next block's query, key and value read.
        self.queries, self.keys, self.values = (
            nn.ModuleDict({str(i): self._grn(i) for i in range(1, last)}) for _ in range(3)
        )

    def plan(self) -> Plan:
        return replace(super().plan(), separate_inputs=True)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for module in self.modules():
            if isinstance(module, GRN):
                for bias, neutral in zip(module.bias, module.neutral, strict=True):
                    nn.init.constant_(bias, neutral)
                nn.init.zeros_(module.score)

    def start(self, x: Tensor, context: Context) -> State:
        # In outputs every sum also scores each source by itself, and those gradients are added up one by one anyway.
        return State(x, x, None, (ops.shared(x) if self.streams else x,))

    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        if site.branch == "mlp":
            return state.x
        if site.step == 0:
            return state.stream
        grns = (each[str(site.step)] for each in (self.queries, self.keys, self.values))
        return AttentionInputs(*mixes(grns, state.stream, state.sources))

    def write(self, state: State, site: Site, y: Tensor) -> State:
        stream = state.stream + y
        if self.streams:
            return State(stream, stream, None, self._streams(state, site, stream))
        if site.branch == "attention":
            x = self.queries[str(site.step)](state.stream, state.sources) + y if site.step else stream
            return State(stream, x, y, state.sources)
        assert state.attended is not None
        sources = (*state.sources, state.attended + y)
        if site.step > self.num_recent:
            # The sum of the old blocks, and the one that is no longer recent.
            embedding, old, latest, *recent = sources
            sources = (embedding, old + latest, *recent)
        return State(stream, stream, None, sources)

    def finish(self, state: State) -> Tensor:
        if self.final is None:
            return state.stream
        mixed: Tensor = self.final(state.stream, state.sources)
        return mixed

    def mixing_weights(self, state: State, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        if site.branch == "mlp" or site.step == 0:
            return None
        return self._shown(self.queries[str(site.step)], state, site.step)

    def final_weights(self, state: State) -> MixingWeights | None:
        if self.final is None:
            return None
        return self._shown(self.final, state, self.shape.num_steps)

    def _shown(self, grn: nn.Module, state: State, done: int) -> MixingWeights:
        """What is weighed after ``done`` blocks; the sum of the old ones has the name of the latest of them."""
        assert isinstance(grn, GRN)
        blocks = self.shape.sites()[1 : 2 * done : 2]
        names = (None, *blocks[1 - len(state.sources) :])
        return MixingWeights(grn.weights(state.stream, state.sources), state.sources, names, grn.bias)

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        last = self.shape.num_steps
        if self.streams:
            # The stream is one of the sources, or will be in place of the oldest; nobody reads the last one.
            return self._num_sources(last - 1) * self.shape.hidden_size * dtype.itemsize
        # In the last block: its attention's output, the stream with it, and what the MLP reads, in the first block the
        # stream.
        inside = 3 if last > 1 else 2
        return (self._num_sources(last - 1) + inside) * self.shape.hidden_size * dtype.itemsize

    def flops_per_token(self) -> int:
        last = self.shape.num_steps
        before_blocks = sum(self._num_sources(i) for i in range(1, last))
        # In outputs the query's input is made twice, for the attention and for the path around it.
        mixed = 3 * before_blocks if self.streams else 4 * before_blocks + self._num_sources(last)
        return 5 * self.shape.hidden_size * mixed

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or site.step == 0:
            return ()
        oldest = max(site.step - self.num_recent - 1, 0) if self.streams else 0
        return (None, *self.shape.sites()[1 : 2 * site.step : 2][oldest:])

    def _num_sources(self, done: int) -> int:
        """After ``done`` blocks: the embedding, one for the old blocks, and the recent blocks."""
        return 1 + (done > self.num_recent) + min(done, self.num_recent)

    def _grn(self, done: int) -> GRN:
        return GRN(self.shape.hidden_size, self._num_sources(done), self.streams)

    def _streams(self, state: State, site: Site, stream: Tensor) -> tuple[Tensor, ...]:
        """The streams after blocks that are read later: the embedding and the last ``num_recent`` + 1."""
        if site.step + 1 == self.shape.num_steps:
            return ()
        if site.branch == "mlp":
            return (*state.sources, ops.shared(stream))
        embedding, *blocks = state.sources
        return (embedding, *blocks[-self.num_recent :])


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Dca]
