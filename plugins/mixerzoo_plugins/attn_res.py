"""Attention Residuals (arXiv 2603.15031): what a sublayer reads is a softmax-weighted sum over depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixingWeights,
    Neutral,
    ReferenceReading,
    Site,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of Attention Residuals."""

    dialect: Literal["kimi", "snapshot"] = Field(
        "kimi",
        description="kimi: sources are sublayer or block outputs; snapshot: snapshots of a running stream.",
    )
    block_size: int = Field(
        1,
        ge=1,
        description="S in sublayers: outputs summed into one source (kimi; 1 is Full) or steps between snapshots.",
    )
    recency_bias: float = Field(3.0, description="Initial bias of the running stream's logit (snapshot only).")

    @model_validator(mode="after")
    def _a_running_stream_is_biased(self) -> Self:
        if self.dialect == "kimi":
            self.refuse_idle("dialect kimi", "set dialect to snapshot", "recency_bias")
        return self


class Source(NamedTuple):
    """A vector to attend to, and its scores with all queries that will read it, computed once.

    Attributes:
        value: [B, T, D].
        scores: [B, T] each, float32 (float64 for float64 values); the last is the final read's.
    """

    value: Tensor
    scores: tuple[Tensor, ...]


#: Reads that are prepared at once. More would read finished sources more seldom, and hold more in flight.
AHEAD = 4


class Prepared(NamedTuple):
    """What the next reads get of the finished sources, and the logarithms of their softmax's sums; oldest first.

    Attributes:
        values: [B, T, D] each.
        log_sums: [B, T] each, float32 (float64 for float64 values).
    """

    values: tuple[Tensor, ...] = ()
    log_sums: tuple[Tensor, ...] = ()


class State(NamedTuple):
    """Between two calls.

    Attributes:
        finished: sources that do not change any more.
        running: the sum of the open block (kimi, None before its first output) or of everything so far (snapshot).
        prepared: reads of the finished sources, of long prompts; empty where a read looks at them itself.
    """

    finished: tuple[Source, ...]
    running: Tensor | None
    prepared: Prepared = Prepared()


class DepthQuery(nn.Module):
    """The learned query of one site: its score with a source v is w·(γ ⊙ v / rms(v)).

    Args:
        size: D.
        bias: whether the last source's logit has a learned bias (`snapshot`).
    """

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(size))
        self.gain = nn.Parameter(torch.empty(size))
        self.recency_bias = nn.Parameter(torch.empty(1)) if bias else None


class AttnRes(Mixer[Config]):
    """Hidden-state attention over depth in place of residual addition."""

    name = "attn_res"
    card = MixerCard(
        title="Attention Residuals",
        summary="Each sublayer reads a learned softmax-weighted sum of earlier outputs instead of their plain sum.",
        paper="arXiv 2603.15031",
        equation="h = Σ_i α_i·v_i,  α = softmax_i(w·RMSNorm_γ(v_i))",
        family="depth-weighted",
        acts_on="hidden states, before each sublayer and before the final norm",
        parameters="2L·2·D (snapshot: 2L·(2·D + 1))",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes=(
            "Full (2L+1)·D·e + L·(2L+3)·4; blocks (blocks + 2)·D·e and 4 for each pair of a finished source and a "
            "read of it, and for long prompts up to 4·(D·e + 4) of prepared reads, which the figures leave out"
        ),
        neutral=(
            "kimi, block_size 1, at initialisation (w = 0): the uniform mean, equal to the residual sum up to "
            "the norm's eps"
        ),
        neutral_settings=(
            Neutral(options={"dialect": "kimi", "block_size": 1, "recency_bias": 3.0}, up_to_norm_eps=True),
        ),
        dialects={
            "kimi": (
                "v_0 is the embedding and v_i the output of sublayer i; with block_size S > 1 the outputs of S "
                "sublayers are summed into one source, and the open block's sum is one more source"
            ),
            "snapshot": (
                "a stream that is never reset is snapshot at the end of a layer once S sublayers have passed; "
                "sources are the embedding, the snapshots and the stream, whose logit has a learned bias"
            ),
        },
        notes=(
            "The first site reads the embedding, its only source, so it has no parameters. In a looped decoder "
            "every unrolled site has a query of its own."
        ),
    )
    reference_keys = frozenset({"attnres_block_size", "attnres_recency_bias_init"})

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.keeps_stream = config.dialect == "snapshot"
        self.num_sublayers = 2 * shape.num_steps
        #: Numbers of sublayers after which the running sum becomes a finished source.
        self.closing = _closing(config, self.num_sublayers)
        #: By number of sublayers done: how many reads from there on see the same finished sources, up to `AHEAD`.
        self.num_prepared = [
            min(AHEAD, *(end - done for end in (*self.closing, self.num_sublayers + 1) if end > done))
            for done in range(self.num_sublayers + 1)
        ]
        #: By number of sublayers done before the read; the last is the final read. Before the first sublayer
        #: there is the embedding and nothing to weigh.
        self.queries = nn.ModuleDict(
            {str(i): DepthQuery(shape.hidden_size, self.keeps_stream) for i in range(1, self.num_sublayers + 1)}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for query in self.queries.values():
            assert isinstance(query, DepthQuery)
            nn.init.zeros_(query.query)
            nn.init.ones_(query.gain)
            if query.recency_bias is not None:
                nn.init.constant_(query.recency_bias, self.config.recency_bias)

    def start(self, x: Tensor, context: Context) -> State:
        return State((self._source(x, 1),), x if self.keeps_stream else None)

    def read(self, state: State, site: Site) -> Tensor:
        return self._attend(state, site.number)

    def write(self, state: State, site: Site, y: Tensor) -> State:
        running = y if state.running is None else state.running + y
        done = site.number + 1
        if done not in self.closing:
            prepared = Prepared(state.prepared.values[1:], state.prepared.log_sums[1:])
            return State(state.finished, running, prepared if prepared.values else self._prepare(state.finished, done))
        finished = (*state.finished, self._source(running, done))
        return State(finished, running if self.keeps_stream else None, self._prepare(finished, done))

    def finish(self, state: State) -> Tensor:
        return self._attend(state, self.num_sublayers)

    def mixing_weights(self, state: State, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return None if site.number == 0 else self._weights(state, site.number)

    def final_weights(self, state: State) -> MixingWeights | None:
        return self._weights(state, self.num_sublayers)

    def flops_per_token(self) -> int:
        flops = 0
        for done in range(1, self.num_sublayers + 1):
            flops += 4 * self.shape.hidden_size * len(self._read_at(done))
        return flops

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return self._sources(site.number)

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        if not any("attnres_" in name for name in tensors) and config.get("baseline_mode") != "attnres":
            return None
        # The two dialects share every config key; only snapshot checkpoints carry recency biases.
        biased = any(name.endswith("_aggregator.recency_bias") for name in tensors)
        options = {
            "dialect": "snapshot" if biased else "kimi",
            "block_size": config.get("attnres_block_size", 12),
        }
        bias = float(config.get("attnres_recency_bias_init", 3.0))
        if biased:
            options["recency_bias"] = bias
        layers = int(config["num_hidden_layers"])
        aggregators = {"model.attnres_final_aggregator": 2 * layers}
        for layer in range(layers):
            aggregators[f"model.layers.{layer}.attnres_attn_aggregator"] = 2 * layer
            aggregators[f"model.layers.{layer}.attnres_mlp_aggregator"] = 2 * layer + 1
        parts = {"pseudo_query": "query", "norm.weight": "gain", "recency_bias": "recency_bias"}
        names = {
            f"{aggregator}.{part}": f"queries.{number}.{own}"
            for aggregator, number in aggregators.items()
            for part, own in parts.items()
        }
        unused = frozenset(name for name, own in names.items() if own.startswith("queries.0."))
        return ReferenceReading(options, names, unused)

    def _source(self, value: Tensor, done: int) -> Source:
        """A finished source, which the reads after ``done`` sublayers and on attend to."""
        value = ops.shared(value)
        return Source(value, self._scored(value, done, self.num_sublayers + 1 - done))

    def _scored(self, value: Tensor, done: int, count: int = 1) -> tuple[Tensor, ...]:
        """Scores of a source with the queries of so many reads, without a bias."""
        # In the order of reads; a look-up for each number would take as long as the scores of a single token.
        each = [
            read for read in islice(self.queries.values(), done - 1, done - 1 + count) if isinstance(read, DepthQuery)
        ]
        queries, gains = [read.query for read in each], [read.gain for read in each]
        return ops.source_scores(value, queries, gains, self.shape.norm_eps)

    def _attend(self, state: State, done: int) -> Tensor:
        if done == 0:
            (embedding,) = state.finished
            return embedding.value
        if state.prepared.values:
            value, log_sum = state.prepared.values[0], state.prepared.log_sums[0]
            if state.running is None:
                return value
            return ops.join_source(value, log_sum, state.running, self._running_score(state.running, done))
        return ops.source_softmax(*self._attended(state, done))

    def _attended(self, state: State, done: int) -> tuple[list[Tensor], list[Tensor]]:
        """What a read after the first attends to, and the scores."""
        values = [source.value for source in state.finished]
        scores = [score for source in state.finished for score in self._scores(source, done)]
        if state.running is not None:
            values.append(state.running)
            scores.append(self._running_score(state.running, done))
        return values, scores

    def _scores(self, source: Source, done: int, count: int = 1) -> tuple[Tensor, ...]:
        """Of a finished source, for the reads after ``done`` sublayers and on."""
        first = len(source.scores) - (self.num_sublayers + 1 - done)
        return source.scores[first : first + count]

    def _running_score(self, running: Tensor, done: int) -> Tensor:
        (score,) = self._scored(running, done)
        bias = self._query(done).recency_bias
        return score if bias is None else score + bias

    def _prepare(self, finished: tuple[Source, ...], done: int) -> Prepared:
        """The finished sources' part of the reads after ``done`` sublayers and on, until another one is finished.

        Not for training, whose backward would have to keep it, and not where there is nothing to share.
        """
        count = self.num_prepared[done]
        if len(finished) < 2 or count < 2 or not ops.reads_at_once(finished[0].value):
            return Prepared()
        values = [source.value for source in finished]
        return Prepared(*ops.source_reads(values, [self._scores(source, done, count) for source in finished]))

    def _query(self, done: int) -> DepthQuery:
        query = self.queries[str(done)]
        assert isinstance(query, DepthQuery)
        return query

    def _weights(self, state: State, done: int) -> MixingWeights:
        values, scores = self._attended(state, done)
        return MixingWeights(ops.source_weights(scores), tuple(values), self._sources(done))

    def _sources(self, done: int) -> tuple[Site | None, ...]:
        sites = self.shape.sites()
        return tuple(None if i == 0 else sites[i - 1] for i in self._read_at(done))

    def _read_at(self, done: int) -> tuple[int, ...]:
        """Sources after ``done`` sublayers, each by the number of sublayers that it closes with."""
        finished = (0, *(closed for closed in self.closing if closed <= done))
        running = done > 0 and (self.keeps_stream or done not in self.closing)
        return (*finished, done) if running else finished


def _closing(config: Config, num_sublayers: int) -> tuple[int, ...]:
    if config.dialect == "kimi":
        return tuple(range(config.block_size, num_sublayers + 1, config.block_size))
    closing, last = [], 0
    for done in range(2, num_sublayers + 1, 2):
        if done - last >= config.block_size:
            closing.append(done)
            last = done
    return tuple(closing)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [AttnRes]
