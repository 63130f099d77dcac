"""The same weights, joined by another mixer."""

from __future__ import annotations

import torch

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Mixer, MixerConfig
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.decoder import Decoder
from mixerzoo.model.initial import initialise_mixer

_MIXER = "model.mixer."


def remix(
    decoder: Decoder,
    mixer: type[Mixer],
    options: MixerConfig,
    *,
    seed: int = 0,
    config: ModelConfig | None = None,
) -> Decoder:
    """A decoder with the weights of another one and a mixer of its own.

    The decoder's tensors are shared, not copied. The mixer starts from its initial values, unless it is the given
    decoder's own mixer with the same options and the same number of steps: then its parameters are shared too.
    Weights for which the new decoder has no place (projections of layers that borrow keys and values) are left out.

    Args:
        decoder: whose weights to take.
        mixer: class of the new mixer.
        options: of the new mixer.
        seed: of its initial values.
        config: conventions of the new decoder; sizes must be those of the given one, which is the default.

    Raises:
        MixerError: the mixer cannot work on this decoder, or needs weights that the decoder does not have.
    """
    with torch.device("meta"):
        result = Decoder(config or decoder.config, mixer, options)
    given = decoder.state_dict()
    if type(decoder.mixer) is not mixer or decoder.mixer.config != options or decoder.shape != result.shape:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(_MIXER)}
        result.mixer.to_empty(device="cpu")
        initialise_mixer(result, seed)
        result.mixer.to(device=decoder.lm_head.weight.device, dtype=decoder.lm_head.weight.dtype)
    wanted = result.state_dict()
    missing = [name for name in wanted if name not in given and not name.startswith(_MIXER)]
    if missing:
        raise MixerError(
            f"mixer {mixer.name!r} needs {missing[0]}, which a decoder with {decoder.mixer.name!r} does not have"
        )
    result.load_state_dict({name: given.get(name, tensor) for name, tensor in wanted.items()}, assign=True)
    result.tie_weights()
    return result.requires_grad_(True)


def left_out(source: Decoder, result: Decoder) -> list[str]:
    """Tensors of a decoder for which its remix has no place.

    Args:
        source: what was given to `remix`.
        result: what came back.
    """
    kept = result.state_dict()
    inherits = source.mixer.config == result.mixer.config and type(source.mixer) is type(result.mixer)
    return [name for name in source.state_dict() if name not in kept or (name.startswith(_MIXER) and not inherits)]
