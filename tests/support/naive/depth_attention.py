"""Depth-Attention (arXiv 2606.05014).

Layer l mixes into its value the values of its source layers D_l at the same token. Per key/value head b, with
q̄_b the mean over the query heads that share it:

    α = softmax over D_l ∪ {l} of q̄_b · k_b^j / √d
    ṽ^l = α_l v^l + Σ_{j ∈ D_l} α_j ṽ^j

Sources give the keys of their own layer and their already mixed values; the layer itself gives its raw value.
Without a source ṽ = v. The residual stream is the plain one.

The ablations: the n entries may weigh 1/n each; keys may be mixed in place of values or along with them, with the
same weights. A source then gives the key that its cache slot holds, the mixed one, and the layer itself its raw one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, ZooCase
from golden_cases import Golden, assembled, golden
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, softmax, weighted_sum

CASES = (
    ZooCase("depth_attention"),
    ZooCase("depth_attention", {"stride": 1}, POST_ROPE),
    ZooCase("depth_attention", {"stride": 3, "recent_window": 1}),
    ZooCase("depth_attention", {"stride": 1}, LOOPED),
    ZooCase("depth_attention", {"stride": 2, "recent_window": 1}, LOOPED),
    ZooCase("depth_attention", {"weights": "uniform"}, LOOPED),
    ZooCase("depth_attention", {"stride": 1, "mixes": "key"}, POST_ROPE),
    ZooCase("depth_attention", {"stride": 1, "mixes": "key_value"}, LOOPED),
    ZooCase("depth_attention", {"stride": 1, "mixes": "key_value", "weights": "uniform"}),
    ZooCase("depth_attention", {"stride": 1, "mixes": "key", "weights": "uniform"}),
    ZooCase("depth_attention", {"sources": "relative", "stride": 2}),
    ZooCase("depth_attention", {"sources": "relative", "stride": 3, "recent_window": 1, "mixes": "key"}, LOOPED),
    ZooCase("depth_attention", {"sources": "first"}, LOOPED),
)
_MIX = {"weights": st.sampled_from(["softmax", "uniform"]), "mixes": st.sampled_from(["value", "key", "key_value"])}
OPTIONS = st.fixed_dictionaries(
    {
        "stride": st.none() | st.integers(1, 5),
        "recent_window": st.integers(0, 3),
        "sources": st.sampled_from(["strided", "relative"]),
        **_MIX,
    }
) | st.fixed_dictionaries({"sources": st.just("first"), **_MIX})


def source_layers(layer: int, stride: int, recent_window: int, rule: str = "strided") -> list[int]:
    """D_l, ascending.

    Args:
        layer: l.
        stride: s; up to 1 means all layers.
        recent_window: w, the last w layers are sources too; up to 0 means none.
        rule: "strided" counts s from layer 0, "relative" from l; "first" is layer 0 in place of a stride.
    """
    found = []
    for j in range(layer):
        counted = layer - j if rule == "relative" else j
        on_stride = j == 0 if rule == "first" else stride <= 1 or counted % stride == 0
        if on_stride or layer - j <= recent_window:
            found.append(j)
    return found


class DepthAttention(TokenMixer):
    """The residual stream, and what each layer has given to the layers above.

    In a looped decoder a layer runs several times. The source layers are then taken at their latest run so
    far, and the layer's own earlier runs are sources as well.

    Args:
        embedding: of the token [D].
        stride: s, in physical layers.
        recent_window: w, in physical layers.
        rule: as in `source_layers`.
        weights: "softmax" or "uniform".
        mixes: "value", "key" or "key_value".
    """

    def __init__(
        self,
        embedding: Tensor,
        stride: int,
        recent_window: int,
        rule: str = "strided",
        weights: str = "softmax",
        mixes: str = "value",
    ) -> None:
        super().__init__(embedding)
        self.stride, self.recent_window, self.rule = stride, recent_window, rule
        self.weights, self.mixes = weights, mixes
        #: layer → its runs so far, each the G keys [d] and G values [d] that attention reads.
        self.runs: dict[int, list[tuple[list[Tensor], list[Tensor]]]] = {}
        #: For each run of a layer, in order: alphas[g] are the weights of its sources, its own last.
        self.alphas: list[list[list[Tensor]]] = []

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        sources = []
        for j in source_layers(layer, self.stride, self.recent_window, self.rule):
            if j in self.runs:
                sources.append(self.runs[j][-1])
        sources += self.runs.get(layer, [])

        read_k, read_v, alphas = [], [], []
        group = len(q) // len(k)
        for b in range(len(k)):
            mean_q = sum(q[b * group + 1 : (b + 1) * group], start=q[b * group]) / group
            keys = [source_k[b] for source_k, _ in sources] + [k[b]]
            values = [source_v[b] for _, source_v in sources] + [v[b]]
            if self.weights == "uniform":
                alpha = [torch.ones_like(mean_q[0]) / len(keys) for _ in keys]
            else:
                alpha = softmax([mean_q @ key / math.sqrt(len(key)) for key in keys])
            alphas.append(alpha)
            read_k.append(weighted_sum(alpha, keys) if sources and self.mixes in ("key", "key_value") else k[b])
            read_v.append(weighted_sum(alpha, values) if sources and self.mixes in ("value", "key_value") else v[b])
        self.alphas.append(alphas)
        self.runs.setdefault(layer, []).append((read_k, read_v))
        return read_k, read_v


def rule_of(mixer: Mixer) -> tuple[int, int, str]:
    """Stride, window and rule of the sources; not set, the stride is half the depth."""
    options = mixer.config.model_dump()
    return options["stride"] or max(1, mixer.shape.num_layers // 2), options["recent_window"], options["sources"]


def begin(mixer: Mixer) -> Begin:
    options = mixer.config.model_dump()
    rule, weights, mixes = rule_of(mixer), options["weights"], options["mixes"]
    return lambda embedding, token: DepthAttention(embedding, *rule, weights, mixes)


def begin_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Begin:
    """The reference with the options of a checkpoint of the reference implementation."""
    stride, recent_window = config["depth_attention_stride"], config["depth_attention_recent_window"]
    return lambda embedding, token: DepthAttention(embedding, stride, recent_window)


def source_steps(mixer: Mixer) -> list[list[int]]:
    """For each step, the earlier steps that it reads, ascending."""
    runs: dict[int, list[int]] = {}
    found = []
    for step, layer in enumerate(mixer.shape.order):
        latest = [runs[j][-1] for j in source_layers(layer, *rule_of(mixer)) if j in runs]
        found.append(sorted([*latest, *runs.get(layer, [])]))
        runs.setdefault(layer, []).append(step)
    return found


def widths(mixer: Mixer) -> dict[str, int]:
    """What a source must give: the numbers of its keys, its values or both, over all heads."""
    shape, options = mixer.shape, mixer.config.model_dump()
    needed = set(options["mixes"].split("_")) | ({"key"} if options["weights"] == "softmax" else set())
    every = {"key": shape.num_kv_heads * shape.head_dim, "value": shape.num_kv_heads * shape.v_head_dim}
    return {thing: every[thing] for thing in needed}


def made_of(mixer: Mixer) -> list[set[int]]:
    """For each step, the steps whose raw values its mixed value is a sum of."""
    found: list[set[int]] = []
    for step, read in enumerate(source_steps(mixer)):
        found.append({step}.union(*(found[j] for j in read)))
    return found


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The stream, and of the steps that a later step reads, what it reads.

    With latent attention also the weights of those steps' values and of the present one's, for each head and each
    raw value that they are made of, where there are several.
    """
    shape, reads, terms = mixer.shape, source_steps(mixer), made_of(mixer)
    most = 0
    for step in range(shape.num_steps):
        held = {j for read in reads[step + 1 :] for j in read if j <= step}
        numbers = sum(widths(mixer).values()) * len(held)
        if shape.latent_dim:
            numbers += sum(shape.num_heads * len(terms[j]) for j in held | {step} if len(terms[j]) > 1)
        most = max(most, numbers)
    return (shape.hidden_size + most) * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """For each source and the step itself: a score, and a weighted term for each number that is mixed, two operations
    each; with uniform weights no score, and one operation to add a term up."""
    options, shape = mixer.config.model_dump(), mixer.shape
    mixed = sum(widths(mixer)[thing] for thing in options["mixes"].split("_"))
    scores = shape.num_kv_heads * shape.head_dim
    each = 2 * scores + 2 * mixed if options["weights"] == "softmax" else mixed
    return each * sum(len(read) + 1 for read in source_steps(mixer) if read)


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The attention sublayers whose values are mixed, the site's own last."""
    read = source_steps(mixer)[site.step]
    if site.branch == "mlp" or not read:
        return ()
    return tuple(Site(j, mixer.shape.order[j], "attention") for j in [*read, site.step])


def plan(mixer: Mixer) -> dict[str, object]:
    """It mixes what each layer computes itself, and weighs each head by its own query and keys.

    Latents are no values yet, so that their sums are left to the weights.
    """
    hooks = {"mix_kv", "value_weights"} if mixer.shape.latent_dim else {"mix_kv"}
    return {"needs_own_kv": True, "heads_apart": True, "hooks": frozenset(hooks)}


def shown(mixer: Mixer) -> tuple[str, ...]:
    """The mix of values, where a step has a source."""
    mixed = mixer.config.model_dump()["mixes"] != "key" and any(source_steps(mixer))
    return ("mix_kv",) if mixed else ()


def spelt(name: str, like: Golden, **keys: int | None) -> Golden:
    """A golden whose config says the same in other words; None removes a key."""
    config = {key: value for key, value in {**like.config, **keys}.items() if value is not None}
    return replace(like, name=name, config=config)


_STRIDE, _WINDOW = "depth_attention_stride", "depth_attention_recent_window"
CHECKPOINTS = assembled(
    "depth_attention",
    spelt(
        "aliases",
        golden("depth_attention_gqa_s3_w2_noqknorm"),
        **{_STRIDE: None, _WINDOW: None},
        depth_softmax_stride=3,
        depth_recent_window=2,
    ),
    spelt("no_keys", golden("depth_attention_mqa_s1_w0_hd16"), **{_STRIDE: None, _WINDOW: None}),
    spelt("no_window", golden("depth_attention_gqa_s2_w0"), **{_WINDOW: None}),
    spelt("below_one", golden("depth_attention_mqa_s1_w0_hd16"), **{_STRIDE: 0, _WINDOW: -1}),
)
#: What draws rarely meet: every ablation, also on latents, deep enough for chains of sources.
_DEEP = {"num_layers": 5, "num_heads": 2, "hidden_size": 8, "intermediate_size": 8}
_LATENT = {
    **_DEEP,
    "attention": "mla",
    "mla": {"kv_lora_rank": 3, "qk_nope_head_dim": 2, "qk_rope_head_dim": 4, "v_head_dim": 3},
}
_ON_VALUES = (
    {},
    {"stride": 1},
    {"sources": "first"},
    {"sources": "relative", "stride": 2},
    {"sources": "relative", "stride": 2, "recent_window": 5},
    {"stride": 2, "recent_window": 1},
)
#: Sources of two digits: only there does a set of steps not ascend by itself.
_TALL = {"num_layers": 10, "num_heads": 1, "hidden_size": 4, "intermediate_size": 4}
_FAR = {"sources": "relative", "stride": 8}
REFERENCE = Reference(
    begin,
    in_flight_bytes,
    flops_per_token,
    sources,
    checkpoints=CHECKPOINTS,
    cases=tuple(
        Case(model, {**options, "weights": weights}, chunks=(2, 1))
        for model in (_DEEP, _LATENT)
        for weights in ("softmax", "uniform")
        for options in _ON_VALUES
    )
    + tuple(
        Case(_DEEP, {"stride": 1, "weights": weights, "mixes": mixes}, chunks=(2, 1))
        for weights in ("softmax", "uniform")
        for mixes in ("key", "key_value")
    )
    + (
        # The smallest depth at which a default stride of 1 is told from 2.
        Case({**_DEEP, "num_layers": 3}, {}, chunks=(2,)),
        # In a second run, a stride upwards would find layers that have run too.
        Case({**_DEEP, "num_layers": 3, "loop": {"count": 2}}, {"stride": 1, "sources": "relative"}, chunks=(2,)),
        Case(_TALL, {**_FAR, "recent_window": 1}, chunks=(2,)),
        Case({**_LATENT, **_TALL}, _FAR, chunks=(2,)),
    ),
    plan=plan,
    shown=shown,
    refused=(
        Case(_DEEP, {"sources": "first", "stride": 2}),
        Case(_DEEP, {"sources": "first", "recent_window": 1}),
        Case(_DEEP, {"sources": "relative", "stride": 5}),
        Case({**_DEEP, "num_layers": 2}, {"sources": "relative", "stride": 2}),
        Case(_LATENT, {"mixes": "key"}),
        Case(_LATENT, {"mixes": "key_value"}),
    ),
)
