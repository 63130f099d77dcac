"""The decoders that the tests run: every mixer, with the options that change what it does, in one place.

A new mixer needs a few lines in `REGISTERED_CASES`, its options in `OPTIONS`, and its naive reference in
`naive_mixer`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import adhoc
from mixerzoo import Decoder, LoopConfig, Mixer, ModelConfig, load_registry
from mixerzoo.decoder import materialize
from naive.attn_res import KimiBlock, KimiFull, Query, Snapshot
from naive.decoder import Sizes, TokenMixer, Trace, run
from naive.denseformer import DenseFormer
from naive.depth_attention import DepthAttention
from naive.residual import Residual
from naive.separate import Separate

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
#: A key norm after RoPE makes logits depend on absolute positions, so wrong ones show.
POST_ROPE = {"k_norm": "post_rope"}
LOOPED = {"loop": LoopConfig(prelude=1, coda=1, count=2)}


@dataclass(frozen=True)
class Case:
    """A mixer with options, on a decoder.

    Attributes:
        mixer: its name, registered or in `adhoc`.
        options: of its ``Config``.
        model: what differs from `MODEL`.
    """

    mixer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.mixer == "planned":
            k, v, windows = self.options["k_slot"], self.options["v_slot"], self.options["windows"]
            shared = [*(["k"] if len(set(k)) < len(k) else []), *(["v"] if len(set(v)) < len(v) else [])]
            parts = [
                "planned",
                *(["shared_" + "".join(shared)] if shared else []),
                *(["windows"] if any(windows) else []),
            ]
        else:
            parts = [self.mixer, *(f"{key}={value}" for key, value in self.options.items())]
        if "loop" in self.model:
            parts.append("looped")
        if "k_norm" in self.model:
            parts.append(self.model["k_norm"])
        return "-".join(parts)

    def __hash__(self) -> int:
        return hash(str(self))


REGISTERED_CASES = (
    Case("residual"),
    Case("residual", model={**LOOPED, **POST_ROPE}),
    Case("denseformer"),
    Case("denseformer", {"dilation": 2, "period": 3}),
    Case("denseformer", {"dilation": 3, "period": 2}, LOOPED),
    Case("attn_res"),
    Case("attn_res", {"block_size": 3}),
    Case("attn_res", {"block_size": 4}, LOOPED),
    Case("attn_res", {"dialect": "snapshot", "block_size": 1}),
    Case("attn_res", {"dialect": "snapshot", "block_size": 3}, LOOPED),
    Case("depth_attention"),
    Case("depth_attention", {"stride": 1}, POST_ROPE),
    Case("depth_attention", {"stride": 3, "recent_window": 1}),
    Case("depth_attention", {"stride": 1}, LOOPED),
    Case("depth_attention", {"stride": 2, "recent_window": 1}, LOOPED),
)


def planned(k_slot: tuple[int, ...], v_slot: tuple[int, ...], *windows: int | None) -> dict[str, Any]:
    """Options of `adhoc.Planned`; windows default to none."""
    return {"k_slot": k_slot, "v_slot": v_slot, "windows": windows or (None,) * len(k_slot)}


def planned_case(k_slot: tuple[int, ...], v_slot: tuple[int, ...], *windows: int | None, **model: Any) -> Case:
    """A case of `adhoc.Planned`."""
    return Case("planned", planned(k_slot, v_slot, *windows), model)


#: Shared slots, windows and separate inputs, as KV-sharing and value-residual methods use them.
ADHOC_CASES = (
    planned_case((0, 0, 2, 2), (0, 0, 2, 2)),
    planned_case((0, 1, 2, 3), (0, 0, 0, 0)),
    planned_case((0, 1, 2, 3), (0, 1, 2, 3), 2, None, 3, 2, **POST_ROPE),
    planned_case((0, 1, 1, 1), (0, 1, 1, 0), 3, 3, None, None),
    planned_case((0, 1, 2, 1, 2, 5), (0, 1, 2, 1, 2, 0), **LOOPED),
    Case("separate", {"back": 0.7}),
)
CASES = REGISTERED_CASES + ADHOC_CASES
#: One case of every mixer, for what does not depend on options.
PLAIN_CASES = tuple({case.mixer: case for case in reversed(REGISTERED_CASES)}.values())

#: Any options of a mixer.
OPTIONS: Mapping[str, st.SearchStrategy[dict[str, Any]]] = {
    "residual": st.just({}),
    "denseformer": st.fixed_dictionaries({"dilation": st.integers(1, 4), "period": st.integers(1, 4)}),
    "attn_res": st.fixed_dictionaries(
        {
            "dialect": st.sampled_from(["kimi", "snapshot"]),
            "block_size": st.integers(1, 6),
            "recency_bias": st.sampled_from([0.0, -1.5, 3.0]),
        }
    ),
    "depth_attention": st.fixed_dictionaries(
        {"stride": st.none() | st.integers(1, 5), "recent_window": st.integers(0, 3)}
    ),
}


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


def make(case: Case, *, dtype: torch.dtype = torch.float64, perturbed: bool = True, **model: Any) -> Decoder:
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
def shared(case: Case) -> Decoder:
    """The perturbed float64 decoder of a case, made once. Tests must leave it as it is."""
    return make(case)


def some_tokens(batch_size: int, length: int, *, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Random token ids [batch_size, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, length), generator=generator)


def naive_attn_res(options: Mapping[str, Any], state: Mapping[str, Tensor], eps: float) -> Callable[[Tensor], Any]:
    """The naive reference of Attention Residuals; arguments as in `naive_mixer`."""
    queries = {}
    for number in sorted({int(name.split(".")[1]) for name in state}):
        prefix = f"queries.{number}."
        queries[number] = Query(
            w=state[prefix + "query"], gain=state[prefix + "gain"], bias=state.get(prefix + "recency_bias")
        )
    if options["dialect"] == "snapshot":
        # The library has no query there: both sources are the embedding, whatever their weights.
        one = next(iter(queries.values()))
        queries[0] = Query(w=one.w, gain=one.gain, bias=one.bias)
    if options["dialect"] == "kimi" and options["block_size"] == 1:
        return partial(KimiFull, queries=queries, eps=eps)
    method = Snapshot if options["dialect"] == "snapshot" else KimiBlock
    return partial(method, queries=queries, eps=eps, block_size=options["block_size"])


def naive_mixer(
    name: str, options: Mapping[str, Any], state: Mapping[str, Tensor], *, num_layers: int, norm_eps: float
) -> Callable[[Tensor], TokenMixer]:
    """The naive reference of a mixer with the library's parameters.

    Args:
        name: of the mixer.
        options: all of its options.
        state: the mixer's state dict.
        num_layers: physical layers.
        norm_eps: of the norms.
    """
    made: dict[str, Callable[[], Callable[[Tensor], TokenMixer]]] = {
        "residual": lambda: Residual,
        "denseformer": lambda: partial(
            DenseFormer,
            alphas={int(key.removeprefix("weights.")): alpha for key, alpha in state.items()},
            dilation=options["dilation"],
            period=options["period"],
        ),
        "attn_res": lambda: naive_attn_res(options, state, norm_eps),
        "depth_attention": lambda: partial(
            DepthAttention,
            # Not set, the stride is half the depth.
            stride=max(1, num_layers // 2) if options["stride"] is None else options["stride"],
            recent_window=options["recent_window"],
        ),
        "planned": lambda: Residual,
        "separate": lambda: partial(Separate, back=options["back"]),
    }
    assert name in made, f"tests/naive has no reference of the mixer {name!r}"
    return made[name]()


def naive_run(decoder: Decoder, tokens: list[int]) -> Trace:
    """What the naive references make of one sequence with the weights of a decoder."""
    config = decoder.config
    state = {name: tensor.double() for name, tensor in decoder.state_dict().items()}
    if config.tie_embeddings:
        del state["lm_head.weight"]
    sizes = Sizes(
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads or config.num_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_heads,
        order=config.order,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        k_norm=config.k_norm,
        scale_embeddings=config.scale_embeddings,
        k_slot=decoder.plan.k_slot,
        v_slot=decoder.plan.v_slot,
        windows=decoder.plan.windows,
    )
    begin = naive_mixer(
        decoder.mixer.name,
        json.loads(decoder.mixer.config.model_dump_json()),
        {n.removeprefix("model.mixer."): t for n, t in state.items() if n.startswith("model.mixer.")},
        num_layers=config.num_layers,
        norm_eps=config.norm_eps,
    )
    return run(state, sizes, begin, tokens)


def naive_logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Logits [B, T, V] of the naive references for tokens [B, T]."""
    return torch.stack([naive_run(decoder, row).logits for row in tokens.tolist()])


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal shapes, and no element farther apart than ``tolerance`` (absolute)."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)
