"""The decoders that the tests run: every mixer, with the options that change what it does, in one place.

A mixer enters with its module in tests/support/naive, see there; nothing here names one.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

import adhoc
import naive
from case import LOOPED, POST_ROPE, ZooCase
from mixerzoo import Decoder, LoopConfig, Mixer, MixerError, ModelConfig, load_registry
from mixerzoo.model import materialize
from mixerzoo.testing import Reference
from mixerzoo.testing.against import trace
from mixerzoo.testing.reference import Trace
from naive.planned import planned, planned_case

__all__ = ["LOOPED", "POST_ROPE", "ZooCase", "planned", "planned_case"]

VOCAB_SIZE = 19
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Small, with a head_dim that is not hidden_size / num_heads, grouped heads, and no two sizes alike.
MODEL: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "vocab_size": VOCAB_SIZE,
}
NO_LOOP = LoopConfig()

#: Mixer, registered or of `adhoc` → its module in tests/support/naive.
NAIVE: Mapping[str, ModuleType] = {
    module.name: importlib.import_module(f"naive.{module.name}") for module in pkgutil.iter_modules(naive.__path__)
}
REGISTERED = tuple(name for name in NAIVE if name not in adhoc.MIXERS)
REGISTERED_CASES: tuple[ZooCase, ...] = tuple(case for name in REGISTERED for case in NAIVE[name].CASES)
#: Shared slots, windows, separate inputs and the rarer hooks.
ADHOC_CASES: tuple[ZooCase, ...] = tuple(case for name in adhoc.MIXERS for case in NAIVE[name].CASES)
CASES = REGISTERED_CASES + ADHOC_CASES
#: One case of every mixer, for what does not depend on options.
PLAIN_CASES = tuple({case.mixer: case for case in reversed(REGISTERED_CASES)}.values())
#: Of every mixer one case, of Depth-Attention and those of the tests all.
CHOSEN = {*PLAIN_CASES, *ADHOC_CASES, *(case for case in REGISTERED_CASES if case.mixer == "depth_attention")}


def parametrized(cases: Iterable[ZooCase], chosen: Collection[ZooCase] = CHOSEN) -> pytest.MarkDecorator:
    """A test for each case: those that were not chosen are slow ones."""
    marked = [pytest.param(case, id=str(case), marks=() if case in chosen else pytest.mark.slow) for case in cases]
    return pytest.mark.parametrize("case", marked)


#: Any options of a mixer.
OPTIONS: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {name: NAIVE[name].OPTIONS for name in REGISTERED}


def reference(mixer: str) -> Reference:
    """The naive reference of a mixer.

    Raises:
        AssertionError: it has none.
    """
    assert mixer in NAIVE, f"the mixer {mixer!r} has no naive reference: write tests/support/naive/{mixer}.py"
    found: Reference = NAIVE[mixer].REFERENCE
    return found


@st.composite
def models(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Sizes and conventions of a small decoder, as the arguments of `ModelConfig`; ``fixed`` ones are not drawn."""
    num_kv_heads = draw(st.integers(1, 3))
    num_layers = draw(st.integers(1, 5))
    prelude = draw(st.integers(0, num_layers - 1))
    coda = draw(st.integers(0, num_layers - 1 - prelude))
    model = {
        "hidden_size": draw(st.integers(8, 24)),
        "intermediate_size": draw(st.integers(4, 24)),
        "num_layers": num_layers,
        "num_heads": num_kv_heads * draw(st.integers(1, 3)),
        "num_kv_heads": num_kv_heads,
        "head_dim": 2 * draw(st.integers(1, 4)),
        "vocab_size": VOCAB_SIZE,
        "qk_norm": draw(st.booleans()),
        "k_norm": draw(st.sampled_from(["pre_rope", "post_rope"])),
        "rope_theta": draw(st.sampled_from([10000.0, 500000.0, 10.0])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6, 1e-2])),
        "tie_embeddings": draw(st.booleans()),
        "scale_embeddings": draw(st.booleans()),
        "loop": LoopConfig(prelude=prelude, coda=coda, count=draw(st.sampled_from([1, 1, 2, 3]))),
    }
    return model | fixed


@st.composite
def plans(draw: st.DrawFn, num_steps: int) -> dict[str, Any]:
    """Options of `adhoc.Planned`: any slots and windows that `Plan` allows."""
    k_slot: list[int] = []
    v_slot: list[int] = []
    windows: list[int | None] = []
    for step in range(num_steps):
        k_owner = draw(st.sampled_from([*(s for s in range(step) if k_slot[s] == s), step]))
        window = draw(st.none() | st.integers(1, 4)) if k_owner == step else windows[k_owner]
        v_owner = draw(st.sampled_from([*(s for s in range(step) if v_slot[s] == s and windows[s] == window), step]))
        k_slot.append(k_owner)
        v_slot.append(v_owner)
        windows.append(window)
    return planned(tuple(k_slot), tuple(v_slot), *windows)


def mixer_class(name: str) -> type[Mixer]:
    """The class of a mixer, registered or in `adhoc`."""
    return adhoc.MIXERS[name] if name in adhoc.MIXERS else load_registry().get(name).mixer


def build(
    mixer: str,
    options: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Decoder:
    """A decoder with its initial weights.

    Args:
        mixer: name.
        options: of its ``Config``.
        model: what differs from `MODEL`.
        seed: of the weights.
        dtype: of the weights.
    """
    return decoder_of(mixer_class(mixer), options, model, seed=seed, dtype=dtype)


def build_drawn(mixer: str, options: Mapping[str, Any], model: Mapping[str, Any]) -> Decoder:
    """As `build`; in a Hypothesis test, sizes that the mixer refuses in words are drawn again."""
    try:
        return build(mixer, options, model)
    except MixerError:
        reject()


def decoder_of(
    mixer: type[Mixer],
    options: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Decoder:
    """A decoder with a mixer by its class; other arguments as in `build`."""
    config = ModelConfig(**{**MODEL, **(model or {})})
    with torch.device("meta"):
        decoder = Decoder(config, mixer, mixer.Config(**(options or {})))
    return materialize(decoder, seed, dtype=dtype)


@torch.no_grad()
def perturb(decoder: Decoder, *, seed: int = 1, mixer_too: bool = True) -> Decoder:
    """Give every parameter a value that an identity at initialisation cannot hide behind.

    Args:
        decoder: changed in place and returned.
        seed: of the values.
        mixer_too: whether the mixer's parameters change as well.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if name.startswith("model.mixer.") and not mixer_too:
            continue
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            parameter.copy_(noise)
        elif parameter.ndim >= 2:
            parameter.copy_(noise / math.sqrt(parameter.size(-1)))
        else:
            parameter.add_(0.3 * noise)
    return decoder


def initial(mixer: str, options: Mapping[str, Any], **model: Any) -> Decoder:
    """A decoder whose mixer is as initialised and whose other weights are not."""
    return perturb(build(mixer, options, model), mixer_too=False)


def make(case: ZooCase, *, dtype: torch.dtype = torch.float64, perturbed: bool = True, **model: Any) -> Decoder:
    """The decoder of a case.

    Args:
        case: which.
        dtype: of the weights.
        perturbed: see `perturb`; else the initial weights.
        model: what else differs from `MODEL`.
    """
    decoder = build(case.mixer, case.options, {**case.model, **model}, dtype=dtype)
    return perturb(decoder) if perturbed else decoder


@functools.cache
def shared(case: ZooCase) -> Decoder:
    """The perturbed float64 decoder of a case, made once. Tests must leave it as it is."""
    return make(case)


def some_tokens(batch_size: int, length: int, *, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Random token ids [batch_size, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, length), generator=generator)


def naive_run(decoder: Decoder, tokens: list[int]) -> Trace:
    """What the naive references make of one sequence with the weights of a decoder."""
    return trace(decoder, reference(decoder.mixer.name), tokens)


def naive_logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of the naive references for tokens [B, T]."""
    return torch.stack([naive_run(decoder, row).logits for row in tokens.tolist()])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal shapes, and no element farther apart than ``tolerance`` (absolute)."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)
