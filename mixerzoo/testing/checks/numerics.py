"""Chapter 8: other precisions, other devices, other sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder
from mixerzoo.testing.case import VOCAB_SIZE, Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.checks.decoding import cached_decoding
from mixerzoo.testing.checks.sequence import causality
from mixerzoo.testing.observe import Method, largest_passed, tensors_in, wrapped
from mixerzoo.testing.ordinary import ORDINARY
from mixerzoo.testing.source_line import in_words, line_at_work

#: Above it, squares in a norm overflow in float32.
_BEARABLE = 1e18


@clause("8.1", large=("rows", "long", "deep", "wide"))
@torch.no_grad()
def precisions(mixer: type[Mixer], case: Case) -> None:
    """float64 is float64 throughout, float32 agrees with it, bf16 does roughly, and bf16 autocast runs.

    Sees: float64, float32, bf16 weights, bf16 autocast; also cached.
    Blind: errors at one site that the logits drown (8.10).
    """
    exact = case.decoder(mixer)
    tokens = case.tokens()
    expected = exact(tokens)
    # Rounding to float32 anywhere drowns the response to a step as small as the second.
    wide, narrow = (_response(exact, tokens, step) for step in (1e-7, 1e-9))
    assert_close(narrow, wide, "the response to a tiny step, in float64", tolerance=1e-2)
    single = case.decoder(mixer, dtype=torch.float32)
    logits = single(tokens)
    assert logits.dtype == torch.float32, f"float32 weights give {logits.dtype}"
    if largest_passed(exact, tokens) > _BEARABLE:
        # With noise on its weights the stream of a deep decoder may grow without bound, in any dtype.
        return
    assert_close(logits.double(), expected, "float32 against float64", tolerance=2e-3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = single(tokens)
        cache = single.new_cache(case.batch_size)
        pieces = torch.cat([single(piece, cache) for piece in case.pieces(tokens)], dim=1)
    assert mixed.isfinite().all(), "logits under autocast are not finite"
    assert pieces.isfinite().all(), "cached logits under autocast are not finite"
    half = single.to(torch.bfloat16)
    logits = half(tokens)
    assert logits.dtype == torch.bfloat16, f"bf16 weights give {logits.dtype}"
    exact.load_state_dict(half.state_dict())
    wanted = exact(tokens)
    # How far rounding the weights alone moves the logits says how well the case is conditioned. Correct mixers stay
    # within ten times that, most within twice.
    scale = float(wanted.norm())
    allowed = 20 * float((wanted - expected).norm()) + 0.2 * scale
    assert logits.isfinite().all(), "bf16 logits are not finite"
    off = float((logits.double() - wanted).norm())
    assert off <= allowed, f"bf16 logits differ from float64 ones by {off / scale:.0%} (allowed {allowed / scale:.0%})"


#: Where rounding to bf16 loses what a norm or a softmax is for.
_WIDE = {
    "mean", "var", "std", "rsqrt", "sqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
    "logsumexp", "_softmax", "_log_softmax", "linalg_vector_norm", "norm",
}  # fmt: skip


class _NarrowNorms(TorchDispatchMode):
    """Collects the operations of `_WIDE` that give bf16, and the lines where they do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        self.found: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        # Squares and cubes are products; other powers are roots and quotients.
        root = name == "pow" and not (isinstance(args[1], int | float) and args[1] in (0, 1, 2, 3, 4))
        if (name in _WIDE or root) and any(t.dtype == torch.bfloat16 and t.numel() for t in tensors_in(result)):
            self.found.setdefault(name.lstrip("_"), line_at_work())
        return result


@clause("8.5", large=("rows", "long", "big"))
@torch.no_grad()
def wide_norms(mixer: type[Mixer], case: Case) -> None:
    """With bf16 weights, the mixer's norms and softmaxes are computed in float32 at least.

    Sees: bf16 weights; without gradients.
    Blind: norms written as sums and products, the backward, and kernels that PyTorch does not show.
    """
    decoder = case.decoder(mixer, dtype=torch.bfloat16)

    def watch(name: str, method: Method) -> Method:
        def call(*arguments: Any) -> Any:
            with narrow:
                result = method(*arguments)
            assert not narrow.found, f"{name} computes {in_words(narrow.found)} in bf16"
            return result

        narrow = _NarrowNorms()
        return call

    with wrapped(decoder.mixer, watch):
        decoder(case.tokens())


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


@clause("8.2", large=())
def meta_device(mixer: type[Mixer], case: Case) -> None:
    """The decoder builds and runs on the meta device.

    Sees: float32 on the meta device; with gradients.
    Blind: caches and other dtypes there (8.8).
    """
    with torch.device("meta"):
        decoder = Decoder(case.config(), mixer, mixer.Config.model_validate(dict(case.options)))
    logits = decoder(case.tokens().to("meta"))
    assert logits.is_meta, "logits left the meta device"
    assert list(logits.shape) == [case.batch_size, case.num_tokens, VOCAB_SIZE], f"logits have shape {logits.shape}"


@clause("8.3")
@torch.no_grad()
def large_activations(mixer: type[Mixer], case: Case) -> None:
    """Activations a million times too large give finite logits in float32.

    Sees: float32; without gradients.
    Blind: gradients that overflow.
    """
    decoder = case.decoder(mixer, dtype=torch.float32)
    decoder.model.embed_tokens.weight.mul_(1e6)
    assert decoder(case.tokens()).isfinite().all(), "logits are not finite"


_EXTREMES = (
    {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 2, "loop": {}},
    {"num_layers": 1, "loop": {"count": 6}},
    {"num_layers": 9, "loop": {}},
    {"num_layers": 40, "loop": {}},
    {"num_layers": 2, "loop": {"count": 12}},
    {"num_heads": 6, "num_kv_heads": 1},
    {"num_heads": 4, "num_kv_heads": 4, "hidden_size": 2},
)


@clause("8.6", cost="once", plain=True)
@torch.no_grad()
def ordinary_decoder(mixer: type[Mixer], case: Case) -> None:
    """A decoder of four layers and four heads, with grouped or with latent attention, is not refused, and decodes.

    Sees: float64; what is large on the meta device.
    Blind: refusals of two large sizes together.
    """
    refusals = []
    for model in ORDINARY:
        ordinary = replace(case, model=model, chunks=(3, 1, 2))
        try:
            ordinary.decoder(mixer)
        except MixerzooError as error:
            refusals.append(str(error))
            continue
        causality(mixer, ordinary)
        cached_decoding(mixer, ordinary)
        _assert_serves_large(mixer, ordinary)
        return
    raise AssertionError("both are refused: " + "; ".join(refusals))


#: Sizes of decoders that people train: an ordinary one, each with one of them, is not refused either.
_LARGE: tuple[dict[str, Any], ...] = (
    {"vocab_size": 262_144},
    {"hidden_size": 16_384},
    {"num_heads": 128, "num_kv_heads": 16},
    {"num_layers": 128},
)


def _assert_serves_large(mixer: type[Mixer], ordinary: Case) -> None:
    for sizes in _LARGE:
        changes = {name: value for name, value in sizes.items() if "mla" not in ordinary.model or "kv" not in name}
        try:
            with torch.device("meta"):
                Decoder(ordinary.config(**changes), mixer, mixer.Config.model_validate(dict(ordinary.options)))
        except MixerzooError as error:
            raise AssertionError(f"an ordinary decoder, but with {sizes}, is refused: {error}") from error


@clause("8.4", cost="dear")
@torch.no_grad()
def extremes(mixer: type[Mixer], case: Case) -> None:
    """One layer, one head, one token, many loops, many layers: decoding still equals the full forward.

    Sees: float64; growing cache.
    Blind: two extremes at once.
    """
    built = 0
    for changes in _EXTREMES:
        for chunks in ((1,), case.chunks):
            model = {**case.model, **changes}
            if "mla" in model:
                # There all heads have keys of their own.
                model = {name: value for name, value in model.items() if name not in ("num_kv_heads", "head_dim")}
            extreme = replace(case, model=model, chunks=chunks, batch_size=1)
            try:
                extreme.decoder(mixer)
            except MixerzooError:
                # A mixer may refuse a size, in words.
                continue
            cached_decoding(mixer, extreme)
            built += 1
    assert built, "the mixer refuses every extreme size"
