"""Hyper-Connections, mHC and mHC-lite as one mixer of three variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mixerzoo import DecoderShape, MixerCard, MixerConfig, MixerError, Neutral, ReferenceReading
from mixerzoo_plugins.hyper_connections.connection import Connection
from mixerzoo_plugins.hyper_connections.hc import FreeConnection
from mixerzoo_plugins.hyper_connections.mhc import SinkhornConnection
from mixerzoo_plugins.hyper_connections.mhc_lite import MAX_LITE_STREAMS, PermutationConnection
from mixerzoo_plugins.hyper_connections.streams import StreamMixer


class Config(MixerConfig):
    """Options of Hyper-Connections."""

    variant: Literal["hc", "mhc", "mhc_lite"] = Field(
        "hc", description="hc: free weights; mhc: stream matrix by Sinkhorn; mhc_lite: by permutations."
    )
    num_streams: int = Field(4, ge=1, description="n residual streams (mhc_lite: 2 to 5).")
    dynamic: bool = Field(True, description="Whether the weights depend on the token (mhc, mhc_lite: always).")
    sinkhorn_iterations: int = Field(20, ge=1, description="Passes over rows and columns (mhc only).")
    alpha_init: float = Field(
        0.01, gt=0, description="Initial scale of the part that depends on the token (not with dynamic: false)."
    )

    @model_validator(mode="after")
    def _idle_options(self) -> Self:
        if self.variant != "hc":
            self.refuse_idle(f"variant {self.variant}, which is always dynamic", "set variant to hc", "dynamic")
        if self.variant != "mhc":
            self.refuse_idle(f"variant {self.variant}", "set variant to mhc", "sinkhorn_iterations")
        elif self.num_streams == 1:
            self.refuse_idle("num_streams 1, whose matrix is 1", "set more of them", "sinkhorn_iterations")
        if not self.dynamic:
            self.refuse_idle("dynamic false", "set dynamic to true", "alpha_init")
        return self


class HyperConnections(StreamMixer[Config]):
    """Several residual streams with learned connections."""

    name = "hyper_connections"
    card = MixerCard(
        title="Hyper-Connections, mHC, mHC-lite",
        summary="Each sublayer reads a weighted sum of n residual streams, which are then mixed and get its output.",
        paper="arXiv 2409.19606",
        equation=(
            "h = Σ_i pre_i·S_i,  u = f(norm(h)),  S_i ← Σ_j res_ij·S_j + post_i·u\n"
            "hc: each weight is static + s·tanh(norm(S_j)·w); the head reads Σ_i S_i\n"
            "mhc: logits a·W·RMSNorm(S) + b; pre = σ, post = 2σ, res = Sinkhorn; the head reads Σ_i softmax(c)_i·S_i\n"
            "mhc_lite: as mhc, with res = Σ_k softmax_k·P_k over all permutations P_k"
        ),
        family="streams",
        acts_on="hidden states, before and after each sublayer",
        parameters=(
            "2L·(n + 2)·(n + D) + 4L for dynamic hc; about 2L·(n² + 2n + 1)·n·D for mhc and "
            "2L·(n! + 2n + 1)·n·D for mhc_lite"
        ),
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="num_streams·D·e",
        neutral=(
            "hc at initialisation: every stream equals the residual one bit for bit, and the head reads n times it, "
            "which its norm undoes up to eps; mhc and mhc_lite start close to it"
        ),
        neutral_settings=(Neutral(options={"variant": "hc", "sinkhorn_iterations": 20}, up_to_norm_eps=True),),
        dialects={
            "hc": "free weights, static or dynamic; the norm of the dynamic part is per stream and has no gain",
            "mhc": "arXiv 2512.24880, as in the reference checkpoints: one norm over all streams; Sinkhorn in float32",
            "mhc_lite": "arXiv 2601.05732: as mhc, but exactly doubly stochastic; n! logits for the stream matrix",
        },
        notes=(
            "Every unrolled sublayer has weights of its own. hc: the gain of the norm would be absorbed by W, so there "
            "is none. mhc_lite: the head and the initial pre and post are those of mhc, and W is drawn like there, so "
            "that the two differ in the stream matrix alone; the identity starts with logit 0, all others with −8. At "
            "its first sublayer all streams are the embedding and a doubly stochastic matrix changes nothing, so there "
            "is none. mhc needs W at the first sublayer too, because Sinkhorn's row sums are not exactly 1. mhc with "
            "one stream: stream matrix and head are exactly 1, so they have no parameters, and pre, whose logit(1/n) "
            "is infinite there, starts at 0.99."
        ),
    )
    reference_keys = frozenset(
        {"mhc_num_streams", "mhc_sinkhorn_iters", "mhc_alpha_init", "residual_baseline_num_streams"}
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        _refuse(config)
        super().__init__(
            config,
            shape,
            [_connection(config, shape, number) for number in range(2 * shape.num_steps)],
            config.num_streams,
            config.alpha_init,
            # The weight of a single stream is 1.
            has_head=config.variant != "hc" and config.num_streams > 1,
        )

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        if not any("_residual_connector." in name for name in tensors) and config.get("baseline_mode") != "mhc":
            return None
        options = {
            "variant": "mhc",
            "num_streams": config.get("mhc_num_streams", config.get("residual_baseline_num_streams", 4)),
            "alpha_init": float(config.get("mhc_alpha_init", 0.01)),
        }
        if options["num_streams"] != 1:
            options["sinkhorn_iterations"] = config.get("mhc_sinkhorn_iters", 20)
        parts = {
            "pre_logits": "pre",
            "post_logits": "post",
            "residual_logits": "mix",
            "mhc_input_norm.weight": "norm",
            "mhc_dynamic_projection.weight": "projection",
            "alpha_pre": "scale_pre",
            "alpha_post": "scale_post",
            "alpha_res": "scale_mix",
        }
        head = "model.residual_stream_projector.reduce_logits"
        names = {head: "head"}
        for layer in range(int(config["num_hidden_layers"])):
            for offset, branch in enumerate(("attn", "mlp")):
                prefix = f"model.layers.{layer}.{branch}_residual_connector"
                names |= {f"{prefix}.{part}": f"connections.{2 * layer + offset}.{own}" for part, own in parts.items()}
        # With one stream its matrix and its weight in the head are 1, whatever their logits.
        idle = ("residual_logits", "alpha_res", head) if options["num_streams"] == 1 else ()
        unused = frozenset(name for name in names if name.endswith(idle)) if idle else frozenset()
        return ReferenceReading(options, names, unused)


def _refuse(config: Config) -> None:
    if config.variant == "mhc_lite" and config.num_streams < 2:
        raise MixerError("mhc_lite mixes streams with each other: num_streams must be at least 2")
    if config.variant == "mhc_lite" and config.num_streams > MAX_LITE_STREAMS:
        raise MixerError(
            f"mhc_lite weighs all n! permutations of its streams, {math.factorial(config.num_streams)} for "
            f"num_streams: {config.num_streams}; use at most {MAX_LITE_STREAMS} streams, or variant: mhc"
        )


def _connection(config: Config, shape: DecoderShape, number: int) -> Connection:
    size, eps = shape.hidden_size, shape.norm_eps
    if config.variant == "hc":
        return FreeConnection(size, config.num_streams, config.dynamic, eps)
    if config.variant == "mhc":
        return SinkhornConnection(size, config.num_streams, config.sinkhorn_iterations, eps)
    return PermutationConnection(size, config.num_streams, number > 0, eps)
