"""Tensor parallelism: which modules of a decoder a rank has a part of, and which mixers allow it."""

from typing import Any

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Plan
from mixerzoo.model import ModelConfig

_MATRICES = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
#: A rank norms its own heads, and the gain of all has a gradient of each.
_HEAD_NORMS = dict.fromkeys(
    ("layers.*.self_attn.q_norm", "layers.*.self_attn.k_norm"), "replicated_with_grad_allreduce"
)


def why_whole(mixer: str, sizes: ModelConfig, plan: Plan) -> str | None:
    """Why a decoder cannot be split among ranks; None: it can.

    Args:
        mixer: its name.
        sizes: of the decoder.
        plan: of the mixer.
    """
    if sizes.attention == "mla":
        return "latent attention has no plan of tensor parallelism"
    if plan.hooks and not plan.heads_apart:
        return f"mixer {mixer!r} needs the keys and values of all heads, or has parameters of each"
    return None


def tensor_parallel_plan(sizes: ModelConfig) -> dict[str, str]:
    """What transformers, and engines that read it from there, do with the modules of a decoder that can be split.

    Args:
        sizes: of the decoder.
    """
    return _MATRICES | (_HEAD_NORMS if sizes.qk_norm else {})


def check_ranks(distributed: Any, whole: str | None, kv_heads: int) -> None:
    """Refuse to split what cannot be, before any weight is read.

    Args:
        distributed: transformers' ``DistributedConfig``, or None.
        whole: from `why_whole`.
        kv_heads: G.

    Raises:
        MixerError: says why.
    """
    ranks = getattr(distributed, "tp_size", None) or 1
    if ranks == 1 or getattr(distributed, "tp_plan", None) == {}:
        return
    if whole is not None:
        raise MixerError(f"{whole}, so the decoder cannot be split among {ranks} ranks; load it with tp_size=1")
    if kv_heads % ranks:
        raise MixerError(
            f"{kv_heads} key/value heads cannot be shared out to {ranks} ranks; set tp_size to a divisor of {kv_heads}"
        )
