"""Depth-Attention (arXiv 2606.05014): a layer's query attends over the keys of earlier layers at the same
token and mixes their values into the value that attention reads and the cache stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixerError,
    MixingWeights,
    Neutral,
    Plan,
    ReferenceReading,
    Site,
    held_sources,
    hookimpl,
    ops,
)


class Config(MixerConfig):
    """Options of Depth-Attention. The last three default to the method; their other values are the ablations."""

    stride: int | None = Field(
        None,
        ge=1,
        description="s: layers 0, s, 2s, … are sources; 1 makes all of them; default half the depth.",
    )
    recent_window: int = Field(0, ge=0, description="w: the last w layers are sources too.")
    sources: Literal["strided", "relative", "first"] = Field(
        "strided",
        description="Layers 0, s, 2s, … (strided), s, 2s, … layers back (relative), or layer 0 alone (first).",
    )
    weights: Literal["softmax", "uniform"] = Field(
        "softmax", description="Weights of the mix: from query and keys (softmax), or all equal (uniform)."
    )
    mixes: Literal["value", "key", "key_value"] = Field("value", description="What is mixed over depth.")

    @model_validator(mode="after")
    def _first_is_alone(self) -> Self:
        if self.sources == "first" and (self.stride is not None or self.recent_window):
            raise ValueError(
                "sources: first is layer 0 alone; leave out stride and recent_window, or choose strided or relative"
            )
        return self


#: Of a step, from which on the gradients of sources are worth adding up together. Until then each reader's query and
#: gradient are held, two vectors of every reader in place of two of every source.
MANY_SOURCES = 7


class KeyValue(NamedTuple):
    """What a source step gives, [B, G, T, d] each; None where no mix asks for it.

    Attributes:
        k: its keys, mixed if keys are mixed.
        v: its values, mixed if values are mixed.
        weights: [B, H, T, N] with latent attention, of the N steps whose raw values sum up to its values; None
            where these are its own raw ones.
    """

    k: Tensor | None
    v: Tensor | None
    weights: Tensor | None


class Memory(NamedTuple):
    """What later steps and the cache ask for.

    Attributes:
        kept: what the held source steps gave.
        weights: of the latest step, as in `KeyValue`.
    """

    kept: tuple[KeyValue, ...]
    weights: Tensor | None


class DepthAttention(AttentionMixer[Config]):
    """Same-token attention over depth, inside attention.

    The mix is made of the new tokens only, before the cache write, so decoding in any chunking agrees
    with the full forward. It adds no parameters and no persistent bytes.
    """

    name = "depth_attention"
    card = MixerCard(
        title="Depth-Attention",
        summary="Each layer's query attends over earlier layers' keys at its token and mixes their values.",
        paper="arXiv 2606.05014",
        equation=(
            "q̄_b = mean of the query heads of kv head b\n"
            "α = softmax_{j ∈ D_l ∪ {l}} (q̄_b·k_b^j / √d)\n"
            "ṽ^l = α_l·v^l + Σ_{j ∈ D_l} α_j·ṽ^j\n"
            "D_l = {j < l : j mod s = 0} ∪ {the last w layers}"
        ),
        family="attention",
        acts_on="value, before the cache write",
        parameters="0",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + 2·G·d·e per source layer (G·d·e where keys alone or values alone are asked for)",
        neutral="one layer (no sources), bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "In a looped decoder the source layers are taken at their latest run, and a layer's own earlier "
            "runs are sources as well. Strides count physical layers. Of its ablations the paper says little more "
            "than the name. Here a source always gives what its cache slots hold and the layer itself what it "
            "projects: where keys are mixed, the mixed key takes the key's slot, later layers score against mixed "
            "keys, and the layer itself against its own raw one; one set of weights mixes keys and values. Uniform "
            "weights count the layer itself as one of the sources. A relative stride defaults to half the depth too. "
            "On multi-head latent attention, of which the paper says nothing, a variant of our own: the mixed value "
            "unrolls to a weighted sum of raw values, so the cache keeps the latents and these weights, H numbers "
            "per token, step and source, itself included; nothing is approximated, and only values can be mixed."
        ),
    )
    reference_keys = frozenset(
        {
            "use_depth_attention",
            "depth_attention_stride",
            "depth_softmax_stride",
            "depth_attention_recent_window",
            "depth_recent_window",
        }
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        stride = config.stride or max(1, shape.num_layers // 2)
        self.mixes_keys = config.mixes != "value"
        self.mixes_values = config.mixes != "key"
        self.scores = config.weights == "softmax"
        #: step → the steps that it takes keys and values from, ascending.
        self.source_steps = source_steps(shape.order, stride, config.recent_window, config.sources)
        if shape.num_steps > 1 and not any(self.source_steps):
            raise MixerError(
                f"depth_attention: with sources relative and stride {stride} none of {shape.num_layers} layers has a "
                "source; set a shorter stride, or a recent_window"
            )
        #: step → the steps whose raw values its values unroll to, itself last; alone where it has no sources.
        self.unrolled: tuple[tuple[int, ...], ...] = ()
        for step, read in enumerate(self.source_steps):
            self.unrolled += (tuple(sorted({step}.union(*(self.unrolled[j] for j in read)))),)
        self.keeps_weights = bool(shape.latent_dim)
        #: Nobody asks for the weights, and they mix values alone: the method itself, not an ablation.
        self.is_one_operation = self.scores and not self.mixes_keys and not self.keeps_weights
        if self.keeps_weights and self.mixes_keys:
            raise MixerError(
                f"depth_attention: mixes is {config.mixes!r}, but with latent attention only values can be mixed; "
                "set it to 'value'"
            )
        readers = Counter(step for read in self.source_steps for step in read)
        of_many = {step for read in self.source_steps if len(read) >= MANY_SOURCES for step in read}
        #: Steps whose keys and values several later ones read, of which one reads many, by an operation that adds up
        #: their gradients together.
        self.shared = {step for step in of_many if readers[step] > 1 and self.is_one_operation}
        #: step → the steps whose keys and values are held once its own are known, ascending.
        self.held = held_sources(self.source_steps)

    def plan(self) -> Plan:
        plan = replace(super().plan(), needs_own_kv=True, heads_apart=True)
        if not self.keeps_weights:
            return replace(plan, hooks=plan.hooks - {"value_weights"})
        return replace(plan, v_reads=self.unrolled)

    def remember(self, x: Tensor, context: Context) -> Memory:
        return Memory((), None)

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        if call.site.step in self.shared:
            call = call._replace(k=ops.shared(call.k))
        site, q, k, v = call.site, call.q, call.k, call.v
        before = self.held[site.step - 1] if site.step else ()
        known: dict[int, KeyValue] = dict(zip(before, state.memory.kept, strict=True))
        sources = [known[j] for j in self.source_steps[site.step]]
        unrolled = None
        if sources:
            keys, values = _terms(sources, call)
            if self.is_one_operation:
                v = ops.depth_softmax(q, keys, values)
            else:
                weights = ops.depth_weights(q, keys) if self.scores else None
                k = _mix(weights, keys) if self.mixes_keys else k
                v = _mix(weights, values) if self.mixes_values else v
            if self.keeps_weights:
                if weights is None:
                    weights = v.new_full((*v.shape[:-1], len(values)), 1 / len(values))
                unrolled = self._unroll(site.step, weights.to(v.dtype), sources)
        if site.step in self.shared:
            v = ops.shared(v)
        known[site.step] = KeyValue(
            k if self.scores or self.mixes_keys else None,
            v if self.mixes_values else None,
            unrolled,
        )
        memory = Memory(tuple(known[j] for j in self.held[site.step]), unrolled)
        return state._replace(memory=memory), k, v

    def value_weights(self, state: AttentionState, site: Site) -> Tensor:
        weights = state.memory.weights
        assert isinstance(weights, Tensor)
        return weights

    def mixing_weights(
        self, state: AttentionState, site: Site, call: AttentionCall | None = None
    ) -> MixingWeights | None:
        if call is None or not self.mixes_values or not self.source_steps[site.step]:
            return None
        known = dict(zip(self.held[site.step - 1], state.memory.kept, strict=True))
        sources = [known[j] for j in self.source_steps[site.step]]
        keys, values = _terms(sources, call)
        if not self.scores:
            return MixingWeights(call.v.new_full((len(values),), 1 / len(values)), tuple(values))
        return MixingWeights(ops.depth_weights(call.q, keys), tuple(values))

    def _unroll(self, step: int, weights: Tensor, sources: Sequence[KeyValue]) -> Tensor:
        """Weights of raw values from those [B, H, T, N] of the sources' values and the step's own."""
        columns: dict[int, Tensor] = {step: weights[..., -1]}
        for number, (j, source) in enumerate(zip(self.source_steps[step], sources, strict=True)):
            for place, raw in enumerate(self.unrolled[j]):
                part = weights[..., number]
                if source.weights is not None:
                    part = part * source.weights[..., place]
                columns[raw] = columns[raw] + part if raw in columns else part
        return torch.stack([columns[raw] for raw in self.unrolled[step]], dim=-1)

    def flops_per_token(self) -> int:
        mixed = sum(len(read) + 1 for read in self.source_steps if read)
        width = self.mixes_keys * self.shape.head_dim + self.mixes_values * self.shape.v_head_dim
        # A score is a product and a sum per element, and so is a weighted term; an unweighted one is a sum.
        each = 2 * self.shape.head_dim + 2 * width if self.scores else width
        return each * self.shape.num_kv_heads * mixed

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or not self.source_steps[site.step]:
            return ()
        sites = self.shape.sites()
        return tuple(sites[2 * j] for j in (*self.source_steps[site.step], site.step))

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        if not config.get("use_depth_attention", False):
            return None
        stride = config.get("depth_attention_stride", config.get("depth_softmax_stride", 1))
        window = config.get("depth_attention_recent_window", config.get("depth_recent_window", 0))
        # The reference counts any stride up to 1 as "all layers" and any window up to 0 as none.
        return ReferenceReading(options={"stride": max(1, stride), "recent_window": max(0, window)})


def source_steps(
    order: Sequence[int], stride: int, recent_window: int, rule: Literal["strided", "relative", "first"]
) -> tuple[tuple[int, ...], ...]:
    """For each unrolled step, the earlier steps that it takes keys and values from, ascending.

    Args:
        order: physical layer of each step.
        stride: s ≥ 1.
        recent_window: w ≥ 0.
        rule: ``"strided"`` anchors the stride at layer 0, ``"relative"`` at the reading layer; ``"first"`` takes
            layer 0 in place of a stride.
    """
    found = []
    for step, layer in enumerate(order):
        anchored = {
            "strided": range(0, layer, stride),
            "relative": range(layer - stride, -1, -stride),
            "first": range(min(layer, 1)),
        }[rule]
        layers = set(anchored) | set(range(max(0, layer - recent_window), layer))
        earlier = order[:step]
        latest = {max(i for i, other in enumerate(earlier) if other == source) for source in layers & set(earlier)}
        own = {i for i, other in enumerate(earlier) if other == layer}
        found.append(tuple(sorted(latest | own)))
    return tuple(found)


def _terms(sources: Sequence[KeyValue], call: AttentionCall) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of the sources, of those that are asked for, and last the step's own."""
    keys = [source.k for source in sources if source.k is not None]
    values = [source.v for source in sources if source.v is not None]
    return [*keys, call.k], [*values, call.v]


def _mix(weights: Tensor | None, terms: Sequence[Tensor]) -> Tensor:
    """The sum of N terms [B, G, T, d] with weights [B, G, T, N], or without weights their mean."""
    if weights is None:
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total / len(terms)
    return ops.weighted_sum(terms, weights)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [DepthAttention]
