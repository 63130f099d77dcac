"""Chapters 3, 6 and 8: without gradients, copied, in two threads, in float16, under torch.func: the same function."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from mixerzoo.mixer import Mixer, load_registry
from mixerzoo.model import Decoder
from mixerzoo.testing.case import Case, perturb
from mixerzoo.testing.check import assert_close, assert_same, clause
from mixerzoo.testing.observe import Method, largest_passed, observed, tensors_in, tokens_of_a_call, wrapped


@clause("3.8", large=("rows", "long", "deep"))
def gradient_modes(mixer: type[Mixer], case: Case) -> None:
    """With gradients, without, and in inference mode the bits are the same, and no call changes what it was given.

    Sees: float64; gradients, no_grad, inference mode; cached in inference mode.
    Blind: the same in narrower dtypes, and in tensors so large that an operation may take another form.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    results = {}
    for name, mode in (("no_grad", torch.no_grad), ("gradients", torch.enable_grad), ("inference", _inference)):
        with mode(), observed(decoder.mixer) as calls:
            calls.copy_inputs = True
            results[name] = decoder(tokens)
        with torch.no_grad():
            for call in calls.made:
                for before, after in zip(call.copies, tensors_in(call.arguments), strict=True):
                    assert_same(after, before, f"with {name}: an argument of {call}")
            assert_same(results[name], results["no_grad"], f"logits with {name}, against those of no_grad")
    with torch.inference_mode():
        cache = decoder.new_cache(case.batch_size)
        cached = torch.cat([decoder(piece, cache) for piece in case.pieces(tokens)], dim=1)
    with torch.no_grad():
        assert_close(cached, results["no_grad"], "cached decoding in inference mode")


def _inference() -> Any:
    return torch.inference_mode()


@clause("3.9", cost="fair")
@torch.no_grad()
def copies(mixer: type[Mixer], case: Case) -> None:
    """A copy, a pickle, a decoder cast and cast back or given other weights has the function of its own weights.

    Sees: float64, a cast to float32; evaluation mode.
    Blind: copies on another device, and caches that were filled before.
    """
    decoder = case.decoder(mixer).eval()
    tokens = case.tokens()
    expected = decoder(tokens)

    def fresh(weights: Decoder) -> Tensor:
        other = case.decoder(mixer, perturbed=False).eval()
        other.load_state_dict({name: tensor.clone() for name, tensor in weights.state_dict().items()})
        logits: Tensor = other(tokens)
        return logits

    for name, duplicate in (("a deep copy", copy.deepcopy), ("a pickled copy", _pickled)):
        twin = duplicate(decoder)
        assert_same(twin(tokens), expected, f"logits of {name}")
        perturb(twin, case.seed + 1)
        assert_same(twin(tokens), fresh(twin), f"logits of {name} whose weights were changed")
        assert_same(decoder(tokens), expected, f"logits of the original after {name} was changed")
    twin = copy.deepcopy(decoder)
    twin.to(torch.float32)(tokens)
    assert_same(twin.to(torch.float64)(tokens), fresh(twin), "logits after a cast to float32 and back")
    rounded = copy.deepcopy(decoder).to(torch.float32).to(torch.float64)
    for ours, theirs in zip(twin.parameters(), rounded.parameters(), strict=True):
        assert_same(ours, theirs.float().double(), "weights after a cast to float32 and back")
    other = case.decoder(mixer, perturbed=False).eval()
    perturb(other, case.seed + 1)
    wanted = other(tokens)
    decoder.load_state_dict(other.state_dict())
    assert_same(decoder(tokens), wanted, "logits after other weights were loaded")


def _pickled(decoder: Decoder) -> Decoder:
    loaded: Decoder = pickle.loads(pickle.dumps(decoder))
    return loaded


@clause("3.10", cost="fair")
@torch.no_grad()
def threads(mixer: type[Mixer], case: Case) -> None:
    """Two threads that run one decoder at once, each with its own tokens, each get what they would get alone.

    Sees: float64; without gradients; turns between calls.
    Blind: races within one call, and more than two threads.
    """
    decoder = case.decoder(mixer)
    texts = [case.tokens(draw=number) for number in range(2)]
    expected = [decoder(tokens) for tokens in texts]
    found: list[Any] = [None, None]
    turns = _Turns()

    def run(number: int) -> None:
        turns.number.value = number
        try:
            with torch.no_grad():
                found[number] = decoder(texts[number])
        except Exception as error:  # noqa: BLE001  raised again by the thread that waits
            found[number] = error
        finally:
            turns.leave(number)

    with wrapped(decoder.mixer, turns.taking):
        workers = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for number, logits in enumerate(found):
        if isinstance(logits, Exception):
            raise AssertionError(f"in a second thread: {type(logits).__name__}: {logits}") from logits
        assert_close(logits, expected[number], f"logits of thread {number}, beside another")


class _Turns:
    """Lets two threads make their calls strictly in turn, so that whatever they share is shared at its worst."""

    def __init__(self) -> None:
        self.number = threading.local()
        self._free = threading.Condition()
        self._next = 0
        self._gone: set[int] = set()

    def taking(self, name: str, method: Method) -> Method:
        """The method, called when it is the calling thread's turn."""

        def call(*arguments: Any) -> Any:
            number = self.number.value
            with self._free:
                self._free.wait_for(lambda: self._next == number or 1 - number in self._gone)
                try:
                    return method(*arguments)
                finally:
                    self._next = 1 - number
                    self._free.notify_all()

        return call

    def leave(self, number: int) -> None:
        """Let the other thread go on alone."""
        with self._free:
            self._gone.add(number)
            self._free.notify_all()


@clause("8.7", cost="fair", large=("deep",))
@torch.no_grad()
def half_precision(mixer: type[Mixer], case: Case) -> None:
    """In float16 logits are finite and near those of float64, and autocast leaves nothing behind where it ends.

    Sees: float16, and float32 under bf16 autocast.
    Blind: gradients in float16, and the autocast of GPUs.
    """
    tokens = case.tokens()
    single = case.decoder(mixer, dtype=torch.float32)
    plain = single(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = single(tokens)
    assert_same(single(tokens), plain, "logits after a forward under autocast")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(single(tokens), mixed, "logits under autocast after a forward without")
    half, exact = single.to(torch.float16), case.decoder(mixer)
    unrounded = exact(tokens)
    exact.load_state_dict(half.state_dict())
    logits, wanted = half(tokens), exact(tokens)
    assert logits.dtype == torch.float16, f"float16 weights give {logits.dtype}"
    if not _fits_float16(exact, tokens):
        return
    assert logits.isfinite().all(), "float16 logits are not finite"
    scale = float(wanted.norm())
    allowed = 20 * float((wanted - unrounded).norm()) + 0.05 * scale
    off = float((logits.double() - wanted).norm())
    assert off <= allowed, (
        f"float16 logits differ from float64 ones by {off / scale:.1%} (allowed {allowed / scale:.1%})"
    )
    half.model.embed_tokens.weight.mul_(64)
    exact.model.embed_tokens.weight.mul_(64)
    finite = bool(half(tokens).isfinite().all()) or not _fits_float16(exact, tokens)
    assert finite, "float16 logits are not finite where embeddings are 64 times as large"


def _fits_float16(decoder: Decoder, tokens: Tensor) -> bool:
    """Whether all that sublayers and the head read and give is far from the end of float16."""
    return largest_passed(decoder, tokens) < 1e4


@clause("6.5", cost="fair", large=())
def function_transforms(mixer: type[Mixer], case: Case) -> None:
    """`torch.func` works as far as it does on a residual decoder: other weights by call, grad, vmap over weights.

    Sees: float64; up to six tokens.
    Blind: forward mode, what PyTorch cannot do to any decoder, and vmap over tokens that go one by one.
    """
    residual = load_registry().get("residual").mixer
    tokens = case.tokens()[:, :6]
    plain = Case(case.model, seed=case.seed, training=case.training).decoder(residual)
    for name, transformed in _TRANSFORMS.items():
        decoder = case.decoder(mixer)
        # One that goes token by token writes to a cache between them, and in place, which vmap cannot.
        given = tokens[:, : tokens_of_a_call(decoder, 6)] if transformed is _mapped else tokens
        try:
            transformed(plain, given)
        except Exception:  # noqa: BLE001  what PyTorch cannot do to any decoder says nothing of the mixer
            continue
        try:
            ours, expected = transformed(decoder, given)
        except Exception as error:
            raise AssertionError(f"{name} fails: {type(error).__name__}: {error}") from error
        assert_close(ours, expected, name)


def _others(decoder: Decoder, factor: float) -> dict[str, Tensor]:
    return {name: (tensor * factor).detach() for name, tensor in decoder.named_parameters()}


def _called(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        weights = _others(decoder, 0.9)
        decoder(tokens)
        ours = functional_call(decoder, weights, (tokens,))
        other = copy.deepcopy(decoder)
        other.load_state_dict(weights, strict=False)
        return ours, other(tokens)


def _derived(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    def loss(weights: dict[str, Tensor]) -> Tensor:
        logits: Tensor = functional_call(decoder, weights, (tokens,))
        return logits.square().mean()

    weights = _others(decoder, 1.0)
    ours = grad(loss)(weights)
    decoder.zero_grad()
    decoder(tokens).square().mean().backward()
    expected = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    pairs = [(ours[name].flatten(), value.flatten()) for name, value in expected.items() if value is not None]
    return torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])


def _mapped(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        sets = [_others(decoder, factor) for factor in (1.0, 0.9)]
        stacked = {name: torch.stack([weights[name] for weights in sets]) for name in sets[0]}
        with warnings.catch_warnings():
            # Attention has no batching rule of its own.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            ours = vmap(lambda weights: functional_call(decoder, weights, (tokens,)))(stacked)
        return ours, torch.stack([functional_call(decoder, weights, (tokens,)) for weights in sets])


#: In words, and what it gives beside what it should.
_TRANSFORMS: dict[str, Callable[[Decoder, Tensor], tuple[Tensor, Tensor]]] = {
    "torch.func.functional_call with other weights": _called,
    "torch.func.grad": _derived,
    "torch.vmap over weights": _mapped,
}
