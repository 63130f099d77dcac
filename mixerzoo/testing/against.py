"""What an author hands the kit to be held against: a naive reference of the mixer, written from its equations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Mixer, ParameterRole, Site
from mixerzoo.model import Decoder
from mixerzoo.testing.case import Case
from mixerzoo.testing.reference import Begin, Latent, Sizes, Trace, run


@dataclass(frozen=True)
class Drawn:
    """Initial values that are drawn from the seed, each entry by itself, of this parameter and of all others.

    Attributes:
        std: standard deviation of each entry, for all or for each; where it is 0 the mean is not departed from. None:
            that of the decoder's own weights (``model.init_std``).
        mean: likewise.
    """

    std: float | Tensor | None = None
    mean: float | Tensor = 0.0


@dataclass(frozen=True)
class Reference:
    """A mixer's naive reference. All but ``begin`` is optional; what is not given is not checked.

    Each callable is given a built mixer: ``mixer.config``, ``mixer.shape`` and its parameters are facts, anything
    else that it computes is under test.

    Attributes:
        begin: from a mixer with float64 parameters, what makes the `TokenMixer` of a token from its embedding [D]
            and its id.
        in_flight_bytes: peak bytes per token, counted from the equations: what `Mixer.in_flight_bytes` must say.
        flops_per_token: likewise.
        sources: likewise; given a site as well.
        plan: likewise, by name: fields that `Mixer.plan` must set so.
        shown: likewise, the calls at which it shows weights: of ``read`` and ``mix_kv`` (`Mixer.mixing_weights`),
            ``write`` (`Mixer.write_weights`) and ``finish`` (`Mixer.final_weights`).
        roles: likewise, parameter name → what `Mixer.parameter_roles` must say of it; of all others nothing.
        initial: parameter name → its initial value, a number, numbers or a tensor, or how it is `Drawn`.
        checkpoints: directories in the layout of the method's reference implementation: ``config.json``,
            ``model.safetensors``, and ``expected.safetensors`` with ``input_ids`` [B, T] and float64
            ``logits.post_rope``, ``logits.pre_rope`` or both [B, T, V].
        cases: on which logits and accounts are compared besides those that are drawn: combinations of options that
            draws rarely meet.
        refused: cases that the mixer must refuse in words, when it is configured or built.
    """

    begin: Callable[[Any], Begin]
    in_flight_bytes: Callable[[Any, torch.dtype], int] | None = None
    flops_per_token: Callable[[Any], int] | None = None
    sources: Callable[[Any, Site], tuple[Site | None, ...]] | None = None
    initial: Callable[[Any], Mapping[str, float | Sequence[float] | Tensor | Drawn]] | None = None
    checkpoints: tuple[Path, ...] = ()
    cases: tuple[Case, ...] = ()
    refused: tuple[Case, ...] = ()
    plan: Callable[[Any], Mapping[str, Any]] | None = None
    shown: Callable[[Any], Collection[str]] | None = None
    roles: Callable[[Any], Mapping[str, ParameterRole]] | None = None


#: Mixer → its reference.
References: TypeAlias = Mapping[type[Mixer], Reference]


@torch.no_grad()
def trace(decoder: Decoder, reference: Reference, tokens: list[int]) -> Trace:
    """What the reference makes of one sequence with the weights of a decoder.

    Args:
        decoder: of any dtype; the reference computes in float64.
        reference: of its mixer.
        tokens: T token ids.

    Raises:
        MixerError: the decoder has what the references have not: scaled RoPE or biases.
    """
    config, shape = decoder.config, decoder.shape
    if config.rope_scaling is not None or config.attention_bias != "none" or config.mlp_bias:
        raise MixerError("the naive references have neither scaled RoPE nor biases")
    weights = {name: tensor.double() for name, tensor in decoder.state_dict().items()}
    if config.tie_embeddings:
        del weights["lm_head.weight"]
    mla = config.mla
    latent = None
    if mla is not None:
        latent = Latent(mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim)
    sizes = Sizes(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        order=decoder.plan.order,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        k_norm=config.k_norm,
        scale_embeddings=config.scale_embeddings,
        k_writes=decoder.plan.k_writes,
        v_writes=decoder.plan.v_writes,
        k_reads=decoder.plan.k_reads,
        v_reads=decoder.plan.v_reads,
        windows=decoder.plan.windows,
        latent=latent,
    )
    return run(weights, sizes, reference.begin(decoder.mixer), tokens)
