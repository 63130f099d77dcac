"""The initial weights of a decoder."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from mixerzoo.errors import MixerError
from mixerzoo.model.available import check_backend
from mixerzoo.model.decoder import Decoder


def materialize(
    decoder: Decoder,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    width_ratio: float = 1.0,
) -> Decoder:
    """Give a decoder built on the meta device its storage and its initial weights.

    Projections, embedding and head are normal with ``init_std``; norms are 1, biases 0. Each weight is drawn from a
    generator of its own, seeded with ``seed`` and its name, so two decoders of one seed that differ in the
    mixer share every other weight. The draws are made on the CPU in float32, so the weights do not depend
    on the device.

    Args:
        decoder: on the meta device.
        seed: of explicit generators; the global one is left alone.
        device: where the weights go.
        dtype: of the weights.
        width_ratio: base width over width: the layers' projections are drawn with the root of it times ``init_std``,
            and an untied head with it times ``init_std``.

    Raises:
        MixerError: the mixer left a parameter without a value.
        BackendError: the attention backend cannot run on the device.
    """
    check_backend(decoder.config.attention_backend, device)
    # What `to_empty` does, which takes ten times as long to leave the meta device.
    decoder._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))  # type: ignore[no-untyped-call]
    decoder.tie_weights()
    std = decoder.config.init_std
    stds = {"model.embed_tokens.weight": std, "lm_head.weight": std * width_ratio}
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.startswith("model.mixer."):
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=stds.get(name, std * width_ratio**0.5), generator=_generator(seed, name))
    initialise_mixer(decoder, seed)
    return decoder.to(device=device, dtype=dtype)


@torch.no_grad()
def initialise_mixer(decoder: Decoder, seed: int) -> None:
    """Give a mixer's parameters their initial values.

    Args:
        decoder: its mixer has storage, on the CPU and in float32.
        seed: as in `materialize`.

    Raises:
        MixerError: the mixer left a parameter without a value.
    """
    mixer = decoder.mixer
    for parameter in mixer.parameters():
        parameter.fill_(math.nan)
    mixer.reset_parameters(_generator(seed, "model.mixer"), decoder.config.init_std)
    for name, parameter in mixer.named_parameters():
        if parameter.isnan().any():
            raise MixerError(f"mixer {mixer.name!r} gives its parameter {name!r} no initial value")


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
