"""Attention Residuals (arXiv 2603.15031): h = Σ_i α_i v_i with α = softmax_i(w · RMSNorm_γ(v_i)).

Every sublayer reads such an h, and so does the final norm; there is no other residual. The three classes
differ in what the sources v_i are. The read after n sublayers has number n, so reads count from 0 to 2L.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, SMALL, ZooCase
from golden_cases import Golden, assembled, golden, naive_traces, without
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, rms_norm, softmax, weighted_sum

CASES = (
    ZooCase("attn_res"),
    ZooCase("attn_res", {"block_size": 3}),
    ZooCase("attn_res", {"block_size": 4}, LOOPED),
    ZooCase("attn_res", {"dialect": "snapshot", "block_size": 1}),
    ZooCase("attn_res", {"dialect": "snapshot", "block_size": 3}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"dialect": st.just("kimi"), "block_size": st.integers(1, 6)}) | st.fixed_dictionaries(
    {
        "dialect": st.just("snapshot"),
        "block_size": st.integers(1, 6),
        "recency_bias": st.sampled_from([0.0, -1.5, 3.0]),
    }
)
REFUSED = (Case(SMALL, {"recency_bias": 0.0}),)


class Query(NamedTuple):
    """The parameters of one read.

    Attributes:
        w: the query [D].
        gain: γ of the norm [D].
        bias: scalar added to the last source's logit (`Snapshot` only).
    """

    w: Tensor
    gain: Tensor
    bias: Tensor | None = None


def mix(query: Query, sources: list[Tensor], eps: float) -> Tensor:
    """The weighted sum of the sources [D]; there is no factor 1/√D.

    Args:
        query: parameters of this read.
        sources: vectors [D].
        eps: of the norm.
    """
    logits = [query.w @ rms_norm(source, query.gain, eps) for source in sources]
    if query.bias is not None:
        logits[-1] = logits[-1] + query.bias
    return weighted_sum(softmax(logits), sources)


class KimiFull(TokenMixer):
    """Sources are the embedding and the output of every sublayer so far.

    Args:
        embedding: of the token [D].
        queries: by number of the read; a read of a single source has none and returns it unchanged.
        eps: of the norms.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float) -> None:
        super().__init__(embedding)
        self.queries, self.eps = queries, eps
        self.sources = [embedding]

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        return self.finish()

    def finish(self) -> Tensor:
        if len(self.sources) == 1:
            return self.sources[0]
        sublayers_done = len(self.sources) - 1
        return mix(self.queries[sublayers_done], self.sources, self.eps)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.sources.append(y)


class KimiBlock(TokenMixer):
    """The outputs of each block of S sublayers are summed into one source.

    Inside a block the sum so far is one more source; before the block's first output there is none.

    Args:
        embedding: of the token [D].
        queries: by number of the read; a read of a single source has none and returns it unchanged.
        eps: of the norms.
        block_size: S.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float, block_size: int) -> None:
        super().__init__(embedding)
        self.queries, self.eps, self.block_size = queries, eps, block_size
        self.finished = [embedding]
        self.block: list[Tensor] = []
        self.sublayers_done = 0

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        return self.finish()

    def finish(self) -> Tensor:
        sources = list(self.finished)
        if self.block:
            sources.append(sum(self.block[1:], start=self.block[0]))
        if len(sources) == 1:
            return sources[0]
        return mix(self.queries[self.sublayers_done], sources, self.eps)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.sublayers_done += 1
        self.block.append(y)
        if len(self.block) == self.block_size:
            self.finished.append(sum(self.block[1:], start=self.block[0]))
            self.block = []


class Snapshot(TokenMixer):
    """Sources are snapshots of a running stream (the embedding first) and the stream itself.

    The stream is never reset. At the end of a layer, if at least S sublayers have passed since the last
    snapshot, the stream is appended to them. The stream's logit, the last, has a learned bias.

    Args:
        embedding: of the token [D].
        queries: by number of the read, each with a bias.
        eps: of the norms.
        block_size: S, in sublayers.
    """

    def __init__(self, embedding: Tensor, queries: Mapping[int, Query], eps: float, block_size: int) -> None:
        super().__init__(embedding)
        self.queries, self.eps, self.block_size = queries, eps, block_size
        self.snapshots = [embedding]
        self.sublayers_done = 0
        self.sublayers_since_snapshot = 0

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        return self.finish()

    def finish(self) -> Tensor:
        return mix(self.queries[self.sublayers_done], [*self.snapshots, self.x], self.eps)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + y
        self.sublayers_done += 1
        self.sublayers_since_snapshot += 1
        layer_ends = self.sublayers_done % 2 == 0
        if layer_ends and self.sublayers_since_snapshot >= self.block_size:
            self.snapshots.append(self.x)
            self.sublayers_since_snapshot = 0


def begin(mixer: Mixer) -> Begin:
    options, state = mixer.config.model_dump(), mixer.state_dict()
    eps, block_size = mixer.shape.norm_eps, options["block_size"]
    queries = {}
    for number in sorted({int(name.split(".")[1]) for name in state}):
        prefix = f"queries.{number}."
        queries[number] = Query(
            w=state[prefix + "query"], gain=state[prefix + "gain"], bias=state.get(prefix + "recency_bias")
        )
    if options["dialect"] == "snapshot":
        # The library has no query there: both sources are the embedding, whatever their weights.
        queries[0] = queries[1]
        return lambda embedding, token: Snapshot(embedding, queries, eps, block_size)
    if block_size == 1:
        return lambda embedding, token: KimiFull(embedding, queries, eps)
    return lambda embedding, token: KimiBlock(embedding, queries, eps, block_size)


def begin_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Begin:
    """The reference with the parameters of a checkpoint of the reference implementation."""
    num_layers, eps, block_size = config["num_hidden_layers"], config["rms_norm_eps"], config["attnres_block_size"]
    places = {2 * num_layers: "model.attnres_final_aggregator"}
    for layer in range(num_layers):
        places[2 * layer] = f"model.layers.{layer}.attnres_attn_aggregator"
        places[2 * layer + 1] = f"model.layers.{layer}.attnres_mlp_aggregator"
    queries = {
        number: Query(
            tensors[f"{place}.pseudo_query"],
            tensors[f"{place}.norm.weight"],
            tensors.get(f"{place}.recency_bias"),
        )
        for number, place in places.items()
    }
    if queries[0].bias is not None:
        return lambda embedding, token: Snapshot(embedding, queries, eps, block_size)
    return lambda embedding, token: KimiBlock(embedding, queries, eps, block_size)


def block(mixer: Mixer) -> int:
    """Sublayers from one finished source to the next; snapshots are taken at the end of a layer only."""
    options = mixer.config.model_dump()
    size: int = options["block_size"]
    return size + size % 2 if options["dialect"] == "snapshot" else size


def ends(mixer: Mixer, done: int) -> list[int]:
    """After how many sublayers each source ends, after ``done`` of them."""
    finished = list(range(0, done + 1, block(mixer)))
    running = done > 0 and (mixer.config.model_dump()["dialect"] == "snapshot" or finished[-1] != done)
    return [*finished, done] if running else finished


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """Finished sources, each with its score at every read but the first, and the sum where it is not one of them."""
    hidden, scalar = mixer.shape.hidden_size * dtype.itemsize, max(4, dtype.itemsize)
    last, most = 2 * mixer.shape.num_steps, 0
    for done in range(last + 1):
        finished = range(0, done + 1, block(mixer))
        scores = sum(len(range(max(1, end), last + 1)) for end in finished)
        running = done % block(mixer) != 0
        most = max(most, len(finished) * hidden + scores * scalar + running * hidden)
    return most


def flops_per_token(mixer: Mixer) -> int:
    """Score and weighted sum, 2·D each, for each source of each read but the first."""
    done = range(1, 2 * mixer.shape.num_steps + 1)
    return 4 * mixer.shape.hidden_size * sum(len(ends(mixer, number)) for number in done)


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """What a sublayer reads, each source by the sublayer that it ends with."""
    sites = mixer.shape.sites()
    return tuple(sites[end - 1] if end else None for end in ends(mixer, sites.index(site)))


def shown(mixer: Mixer) -> tuple[str, ...]:
    """Every read but the first, and the head's."""
    return "read", "finish"


def initial(mixer: Mixer) -> dict[str, float]:
    """w = 0, γ = 1, and the option's bias."""
    options = mixer.config.model_dump()
    values = {"query": 0.0, "gain": 1.0}
    if options["dialect"] == "snapshot":
        values["recency_bias"] = options["recency_bias"]
    reads = range(1, 2 * mixer.shape.num_steps + 1)
    return {f"queries.{number}.{part}": value for number in reads for part, value in values.items()}


def blocks_of_twelve() -> Golden:
    """No golden leaves out the block size, which is 12 sublayers then: a seventh layer, a copy of the last."""
    like = golden("attnres_delta_b1")
    tensors = dict(like.tensors)
    tensors |= {name.replace(".5.", ".6."): tensor.clone() for name, tensor in tensors.items() if ".layers.5." in name}
    config = {**like.config, "num_hidden_layers": 7, "attnres_block_size": 12}
    tokens = like.tokens[:1, :3]
    case = replace(like, name="attnres_b12", config=config, tensors=tensors, expected={"input_ids": tokens})
    begun = begin_checkpoint(config, {name: tensor.double() for name, tensor in tensors.items()})
    logits = torch.stack([trace.logits for trace in naive_traces(case, "pre_rope", begun)])
    return without(replace(case, expected={"input_ids": tokens, "logits.pre_rope": logits}), "attnres_block_size")


CHECKPOINTS = assembled("attnres", blocks_of_twelve(), without(golden("attnres_b2"), "baseline_mode"))
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, CHECKPOINTS, refused=REFUSED, shown=shown
)
