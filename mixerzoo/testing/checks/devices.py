"""Chapter 8: on any device, of any dtype; at zeros and repetitions; rounded no more than need be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder
from mixerzoo.testing.case import VOCAB_SIZE, Case
from mixerzoo.testing.check import assert_close, assert_same, clause
from mixerzoo.testing.observe import Call, Method, observed, tensors_in, wrapped
from mixerzoo.testing.source_line import in_words, line_at_work

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@clause("8.8", cost="dear", large=())
def any_device(mixer: type[Mixer], case: Case) -> None:
    """On the meta device every path runs in every dtype, and nothing but float64 weights gives float64.

    Sees: four dtypes on the meta device; training, evaluation, cache.
    Blind: operations that a device lacks, and values.
    """
    tokens = case.tokens().to("meta")
    for dtype in _DTYPES:
        with torch.device("meta"):
            decoder = Decoder(case.config(), mixer, mixer.Config.model_validate(dict(case.options))).to(dtype)
        # Each mode in a wide and in a narrow dtype.
        training = dtype in (torch.float64, torch.bfloat16)
        with wrapped(decoder.train(training).mixer, _narrow if dtype != torch.float64 else lambda name, method: method):
            try:
                _every_path(decoder, case, tokens)
            except (MixerError, AssertionError):
                raise
            except Exception as error:
                mode = "training" if training else "evaluation"
                raise AssertionError(f"{dtype}, {mode}: {type(error).__name__}: {error}") from error


def _every_path(decoder: Decoder, case: Case, tokens: Tensor) -> None:
    for piece in (tokens, tokens[:, :1]):
        logits = decoder(piece)
        assert logits.is_meta, "logits left the meta device"
    logits.sum().backward()
    with torch.no_grad():
        with observed(decoder.mixer) as calls:
            decoder(tokens)
        for call in calls.made:
            _assert_shown_there(decoder, call)
        cache = decoder.new_cache(case.batch_size)
        for piece in (*case.pieces(tokens), tokens[:, :1]):
            assert decoder(piece, cache).is_meta, "logits of cached decoding left the meta device"
        for piece in (tokens, tokens[:, :1]):
            assert decoder(piece, last_only=True).is_meta, "the last token's logits left the meta device"


def _assert_shown_there(decoder: Decoder, call: Call) -> None:
    mixer = decoder.mixer
    if call.name == "read":
        shown = mixer.mixing_weights(*call.arguments)
    elif call.name == "mix_kv":
        shown = mixer.mixing_weights(call.arguments[0], call.arguments[1].site, call.arguments[1])
    else:
        return
    assert shown is None or shown.weights.is_meta, f"{call}: the weights that are shown lie on another device"


class _Wide(TorchDispatchMode):
    """Collects the operations that give float64, and the lines where they do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        self.found: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(tensor.dtype == torch.float64 for tensor in tensors_in(result)):
            self.found.setdefault(func.overloadpacket.__name__, line_at_work())
        return result


def _narrow(name: str, method: Method) -> Method:
    """The method, held to compute nothing in float64."""

    def call(*arguments: Any) -> Any:
        wide = _Wide()
        with wide:
            result = method(*arguments)
        assert not wide.found, f"{name} computes {in_words(wide.found)} in float64"
        return result

    return call


@clause("8.9", large=("deep",))
def degenerate_inputs(mixer: type[Mixer], case: Case) -> None:
    """Logits and gradients are finite where embeddings or outputs are zero, and where tokens are all alike.

    Sees: float64, float32; backward.
    Blind: the same in bf16.
    """
    decoder = case.decoder(mixer)
    alike = torch.full_like(case.tokens(), case.pick % VOCAB_SIZE)
    _assert_finite(decoder, alike, "with tokens that are all alike")
    outputs = [p for n, p in decoder.named_parameters() if n.endswith(("o_proj.weight", "down_proj.weight"))]
    for what, zeros in (("outputs", outputs), ("embeddings and outputs", [decoder.model.embed_tokens.weight])):
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()
        _assert_finite(decoder, case.tokens(), f"with {what} of zero")
    _assert_finite(decoder.float(), case.tokens(), "with embeddings and outputs of zero, in float32")


def _assert_finite(decoder: Decoder, tokens: Tensor, where: str) -> None:
    decoder.zero_grad()
    logits = decoder(tokens)
    assert logits.isfinite().all(), f"logits are not finite {where}"
    logits.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        gradient = parameter.grad
        assert gradient is None or gradient.isfinite().all(), f"the gradient of {name} is not finite {where}"


@clause("8.11", cost="fair", large=())
@torch.no_grad()
def token_dtypes(mixer: type[Mixer], case: Case) -> None:
    """Token ids that are int32 give the logits of those that are int64.

    Sees: int32 ids; also through a growing cache.
    Blind: ids of 16 bits and fewer.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    expected = decoder(tokens)
    assert_same(decoder(tokens.int()), expected, "logits of int32 ids")
    cache = decoder.new_cache(case.batch_size)
    cached = torch.cat([decoder(piece.int(), cache) for piece in case.pieces(tokens)], dim=1)
    assert_close(cached, expected, "logits of int32 ids through the cache")


#: Draws of what rounding explains; how many times that, and which share of the value itself, is allowed.
_DRAWS, _TIMES, _SHARE = 4, 8.0, 0.008


@clause("8.10", cost="fair", large=())
@torch.no_grad()
def rounding(mixer: type[Mixer], case: Case) -> None:
    """In bf16 what each sublayer reads is off by no more than rounding weights, embeddings and outputs explains.

    Sees: bf16 weights; without gradients.
    Blind: errors below 0.8 %, float16, and gradients.
    """
    half = case.decoder(mixer, dtype=torch.bfloat16)
    exact = case.decoder(mixer)
    exact.load_state_dict(half.state_dict())
    tokens = case.tokens()
    outputs: list[Tensor] = []
    ours = _reads(half, tokens, keep=outputs)
    expected = _reads(exact, tokens, given=outputs)
    explained = [torch.zeros(()) for _ in expected]
    noisy = exact
    for draw in range(_DRAWS):
        noisy.load_state_dict(half.state_dict())
        generator = torch.Generator().manual_seed(case.seed + draw)
        for parameter in (*noisy.mixer.parameters(), noisy.model.embed_tokens.weight):
            _shake(parameter, generator)
        shaken = [_shake(output.clone(), generator) for output in outputs]
        moved = [
            now.double() - was for (_, now), (_, was) in zip(_reads(noisy, tokens, given=shaken), expected, strict=True)
        ]
        explained = [e + m.norm() ** 2 / _DRAWS for e, m in zip(explained, moved, strict=True)]
    for (call, got), (_, wanted), noise in zip(ours, expected, explained, strict=True):
        off, size = float((got.double() - wanted).norm()), float(wanted.norm())
        allowed = _TIMES * float(noise) ** 0.5 + _SHARE * size
        assert off <= allowed, (
            f"{call} is off by {off / max(size, 1e-30):.2%} in bf16; rounding explains {allowed / max(size, 1e-30):.2%}"
        )


def _shake(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Change every entry by what rounding to bf16 changes it by, in place."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return tensor.mul_(1 + (noise * 2**-9 / 3**0.5).to(tensor.dtype))


def _reads(
    decoder: Decoder, tokens: Tensor, *, keep: list[Tensor] | None = None, given: list[Tensor] | None = None
) -> list[tuple[str, Tensor]]:
    """What the mixer lets sublayers and the head read, by the call in words.

    Args:
        decoder: of any dtype.
        tokens: [B, T].
        keep: gets the sublayers' outputs, as float64.
        given: sublayers' outputs in place of the decoder's own.
    """
    replaced = iter(given or ())

    def swap(name: str, method: Method) -> Method:
        if name != "write":
            return method

        def call(state: Any, site: Any, y: Tensor) -> Any:
            if keep is not None:
                keep.append(y.double())
            return method(state, site, y if given is None else next(replaced).to(y.dtype))

        return call

    with wrapped(decoder.mixer, swap), observed(decoder.mixer) as calls:
        decoder(tokens)
    return [
        (str(call), part.clone())
        for call in calls.made
        if call.name in ("read", "finish")
        for part in tensors_in((call.result,))
    ]
