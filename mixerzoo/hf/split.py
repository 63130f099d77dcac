"""Tensor parallelism: which modules of a decoder a rank has a part of, and which mixers allow it.

No other split of a model is known here, so device maps have one device.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
import transformers
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionMixer, Mixer
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


def why_whole(mixer: Mixer, sizes: ModelConfig) -> str | None:
    """Why a decoder cannot be split among ranks; None: it can.

    Args:
        mixer: of the decoder.
        sizes: of the decoder.
    """
    if sizes.attention == "mla":
        return "latent attention has no plan of tensor parallelism"
    plan = mixer.plan()
    if plan.hooks and not plan.heads_apart:
        return f"mixer {mixer.name!r} needs the keys and values of all heads, or has parameters of each"
    for part in _mixers(mixer):
        if part.plan().hooks and not isinstance(part, AttentionMixer) and any(_own_parameters(part)):
            return f"mixer {part.name!r} has hooks and parameters, but is no AttentionMixer"
    return None


def sum_gradients(model: nn.Module) -> None:
    """Let the parameters that attention hooks read get the gradients of all heads, if ranks have some of them each.

    They are those of every `AttentionMixer`; what else a mixer has acts on hidden states, which every rank has whole.

    Args:
        model: either Hugging Face model, with the weights that it keeps.
    """
    from torch.distributed.tensor import DTensor

    decoder: Any = getattr(model, "model", model)
    weight = decoder.layers[0].self_attn.q_proj.weight if hasattr(decoder.layers[0].self_attn, "q_proj") else None
    if not isinstance(weight, DTensor):
        return
    mesh = weight.device_mesh
    group = mesh.get_group("tp") if mesh.ndim > 1 else mesh.get_group()

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total, group=group)
        return total

    for part in _mixers(decoder.mixer):
        if isinstance(part, AttentionMixer):
            for parameter in _own_parameters(part):
                parameter.register_hook(summed)


def _mixers(mixer: Mixer) -> list[Mixer]:
    """The mixer and those that it is composed of."""
    return [module for module in mixer.modules() if isinstance(module, Mixer)]


def _own_parameters(mixer: Mixer) -> list[nn.Parameter]:
    """Those that belong to no mixer that it is composed of."""
    others = {id(p) for part in _mixers(mixer) if part is not mixer for p in part.parameters()}
    return [parameter for parameter in mixer.parameters() if id(parameter) not in others]


def tensor_parallel_plan(sizes: ModelConfig) -> dict[str, str]:
    """What transformers, and engines that read it from there, do with the modules of a decoder that can be split.

    Args:
        sizes: of the decoder.
    """
    return _MATRICES | (_HEAD_NORMS if sizes.qk_norm else {})


def check_ranks(distributed: Any, whole: str | None, kv_heads: int, tied: bool) -> None:
    """Refuse to split what cannot be, before any weight is read.

    Args:
        distributed: transformers' ``DistributedConfig``, or None.
        whole: from `why_whole`.
        kv_heads: G.
        tied: whether the head has the weights of the embedding.

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
    if tied and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 21):
        raise MixerError(
            f"transformers {transformers.__version__} leaves an embedding whole that the head is tied to, and joins "
            f"the logits of {ranks} ranks all the same; install version 5.21 or later, or load it with tp_size=1"
        )


def check_device_map(placed: Mapping[str, Any] | None) -> None:
    """Refuse to spread a decoder over devices.

    accelerate brings weights and inputs together where a module's `forward` is called. A mixer's other methods read its
    weights too, and layers lend each other keys and values behind it.

    Args:
        placed: the device of each module, or ``disk``; None: there is no map.

    Raises:
        MixerError: they are several, or one is the disk.
    """
    # To accelerate two names of one device are two.
    devices = set((placed or {}).values())
    if len(devices) > 1 or "disk" in devices:
        raise MixerError(
            f"device_map names {', '.join(sorted(map(repr, devices)))}; a mixer's weights and what its layers share "
            'stay on one device: load the model with device_map={"": device}'
        )
