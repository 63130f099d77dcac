"""Chapter 8: other precisions, other devices, other sizes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mixerzoo.decoder import Decoder
from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.testing.case import VOCAB_SIZE, Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.checks.decoding import cached_decoding


@clause("8.1")
@torch.no_grad()
def precisions(mixer: type[Mixer], case: Case) -> None:
    """float64 is float64 throughout and float32 agrees with it; bf16 weights and bf16 autocast run."""
    exact = case.decoder(mixer)
    tokens = case.tokens()
    expected = exact(tokens)
    # Rounding to float32 anywhere drowns the response to a step as small as the second.
    wide, narrow = (_response(exact, tokens, step) for step in (1e-5, 1e-9))
    assert_close(narrow, wide, "the response to a tiny step, in float64", tolerance=1e-2)
    single = case.decoder(mixer, dtype=torch.float32)
    logits = single(tokens)
    assert logits.dtype == torch.float32, f"float32 weights give {logits.dtype}"
    assert_close(logits.double(), expected, "float32 against float64", tolerance=2e-3)
    half = case.decoder(mixer, dtype=torch.bfloat16)(tokens)
    assert half.dtype == torch.bfloat16, f"bf16 weights give {half.dtype}"
    assert half.isfinite().all(), "bf16 logits are not finite"
    with torch.autocast("cpu", torch.bfloat16):
        mixed = single(tokens)
        cache = single.new_cache(case.batch_size)
        pieces = torch.cat([single(piece, cache) for piece in case.pieces(tokens)], dim=1)
    assert mixed.isfinite().all(), "logits under autocast are not finite"
    assert pieces.isfinite().all(), "cached logits under autocast are not finite"


def _response(decoder: Decoder, tokens: Tensor, step: float) -> Tensor:
    """Change of the logits per step when the embeddings take a step there and back."""
    weight = decoder.model.embed_tokens.weight
    direction = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype).view_as(weight)
    kept, ends = weight.clone(), []
    for sign in (1, -1):
        weight.copy_(kept + sign * step * direction)
        ends.append(decoder(tokens))
    weight.copy_(kept)
    response: Tensor = (ends[0] - ends[1]) / (2 * step)
    return response


@clause("8.2")
def meta_device(mixer: type[Mixer], case: Case) -> None:
    """The decoder builds and runs on the meta device."""
    with torch.device("meta"):
        decoder = Decoder(case.config(), mixer, mixer.Config.model_validate(dict(case.options)))
    logits = decoder(case.tokens().to("meta"))
    assert logits.is_meta, "logits left the meta device"
    assert list(logits.shape) == [case.batch_size, case.num_tokens, VOCAB_SIZE], f"logits have shape {logits.shape}"


@clause("8.3")
@torch.no_grad()
def large_activations(mixer: type[Mixer], case: Case) -> None:
    """Activations a million times too large give finite logits in float32."""
    decoder = case.decoder(mixer, dtype=torch.float32)
    decoder.model.embed_tokens.weight.mul_(1e6)
    assert decoder(case.tokens()).isfinite().all(), "logits are not finite"


_EXTREMES = (
    {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 2, "loop": {}},
    {"num_layers": 1, "loop": {"count": 6}},
    {"num_layers": 9, "loop": {}},
    {"num_heads": 6, "num_kv_heads": 1},
    {"num_heads": 4, "num_kv_heads": 4, "hidden_size": 2},
)


@clause("8.4", cost="dear")
@torch.no_grad()
def extremes(mixer: type[Mixer], case: Case) -> None:
    """One layer, one head, one token, many loops, many layers: decoding still equals the full forward."""
    built = 0
    for changes in _EXTREMES:
        for chunks in ((1,), case.chunks):
            extreme = replace(case, model={**case.model, **changes}, chunks=chunks, batch_size=1)
            try:
                cached_decoding(mixer, extreme)
                built += 1
            except MixerzooError:
                # A mixer may refuse a size, in words.
                continue
    assert built, "the mixer refuses every extreme size"
