"""Backends that are true: each works where it says so, and nothing else runs in its place."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zoo
from case import LATENT
from mixerzoo import Decoder, ModelConfig
from mixerzoo.errors import BackendError
from mixerzoo.model import available, backends, check_backend, flash, fused_flex
from mixerzoo.model.backends import Visibility, eager_attention, make_mask
from mixerzoo.ops import sequence_attention
from zoo import ZooCase, assert_close, some_tokens


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(available, "_DEVICE", "cpu")
    available._check_xformers.cache_clear()
    yield
    available._check_xformers.cache_clear()


def with_xformers(monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Any]) -> None:
    """An xformers whose attention is this."""
    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


@pytest.mark.usefixtures("cuda")
def test_xformers_whose_extension_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*operands: Tensor) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    with_xformers(monkeypatch, attention)
    with pytest.raises(BackendError, match=r"cannot run beside PyTorch .* set model.attention_backend to 'sdpa'"):
        check_backend("xformers", "cuda", training=True)


@pytest.mark.usefixtures("cuda")
def test_xformers_that_computes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_xformers(monkeypatch, lambda q, k, v: q)
    check_backend("xformers", "cuda", training=True)


def test_the_extra_pins_the_one_release() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["xformers"] == ["xformers==0.0.35"]


@pytest.mark.parametrize("name", ["fash", 3])
def test_what_is_no_backend_is_refused(name: Any) -> None:
    with pytest.raises(BackendError, match=r"there is no attention backend .*; known: sdpa, eager, flex, flash"):
        check_backend(name, "cpu")


# What is not computed as asked.

WINDOWED = {"sliding_window": 3}
UNFIT = [
    (
        "moda",
        {},
        ("flex", "flash", "xformers"),
        r"'moda' joins entries along depth .*; set .*attention_backend to sdpa$",
    ),
    ("compose", {}, ("flex",), "'compose' joins entries along depth"),
    ("depth_attention", LATENT, ("flex",), "'depth_attention' sums latents of several layers"),
    ("residual", LATENT, ("flash", "xformers"), r"of one width, and with model\.attention mla theirs differ"),
    ("residual", WINDOWED, ("flash",), r"flash has no windows, and model\.sliding_window asks for one; .*\(or flex\)$"),
    ("yoco", {}, ("flash",), "flash has no windows, and mixer 'yoco' gives them to layers"),
]
OF_MODA: dict[str, Any] = {"of": [{"name": "moda"}]}


@pytest.mark.parametrize(
    ("mixer", "model", "backend", "words"),
    [(mixer, model, backend, words) for mixer, model, names, words in UNFIT for backend in names],
)
def test_a_backend_that_would_not_compute_all_of_it_is_refused(
    mixer: str, model: dict[str, Any], backend: str, words: str
) -> None:
    with pytest.raises(BackendError, match=words):
        on_meta(mixer, **model, attention_backend=backend)


def test_a_backend_that_computes_all_of_it_is_taken() -> None:
    for backend in ("sdpa", "eager"):
        for mixer, model, *_ in UNFIT:
            on_meta(mixer, **model, attention_backend=backend)
    on_meta("yoco", attention_backend="flex")
    on_meta("residual", **LATENT, attention_backend="flex")
    on_meta("moda", num_layers=1, attention_backend="flash")
    on_meta("residual", **WINDOWED, sliding_layers=(), attention_backend="flash")


def on_meta(mixer: str, **model: Any) -> Decoder:
    kind = zoo.mixer_class(mixer)
    options = kind.Config.model_validate(OF_MODA if mixer == "compose" else {})
    with torch.device("meta"):
        return Decoder(ModelConfig(**{**zoo.MODEL, **model}), kind, options)


# Flash.


def test_flash_is_refused_on_the_cpu_and_in_long_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="'flash' needs a CUDA device"):
        check_backend("flash", "cpu")
    q = torch.zeros(1, 2, 3, 8)
    with pytest.raises(BackendError, match=r"not in torch.float32 on cpu"):
        flash.flash(q, q, q, 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    activate = mock.Mock()
    monkeypatch.setattr(flash, "activate", activate)
    check_backend("flash", "cuda", dtype=torch.bfloat16)
    activate.assert_called_once()
    with pytest.raises(BackendError, match=r"not in torch.float32; set train.precision to bf16"):
        check_backend("flash", "cuda", dtype=torch.float32)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    with pytest.raises(BackendError, match="not in this build"):
        check_backend("flash", "cuda")


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"window": 3}, "a window"),
        ({"padding": torch.zeros(2)}, "left padding"),
        ({"documents": torch.zeros(2, 4)}, "documents"),
    ],
)
def test_flash_has_no_masks(rule: dict[str, Any], what: str) -> None:
    tokens = torch.arange(4)
    plain = Visibility(tokens, tokens, None, None, None, last=True)
    assert make_mask(plain, "flash", hides_nothing=False).dense is None
    with pytest.raises(BackendError, match=f"nothing of {what}; set"):
        make_mask(plain._replace(**rule), "flash", hides_nothing=False)


def test_flash_takes_the_newest_implementation_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[str] = []
    for name, value in {
        "current_flash_attention_impl": lambda: None,
        "list_flash_attention_impls": lambda: ["FA3", "FA4"],
        "activate_flash_attention_impl": activated.append,
    }.items():
        monkeypatch.setattr(torch.nn.attention, name, value, raising=False)
    for installed, expected in (((), None), (("flash_attn_interface",), "FA3"), (tuple(flash._NEWER.values()), "FA4")):
        flash.activate.cache_clear()
        monkeypatch.setattr(flash, "_is_installed", lambda module, there=installed: module in there)
        assert flash.activate() == expected
    assert activated == ["FA3", "FA4"]
    flash.activate.cache_clear()
    broken = mock.Mock(side_effect=ImportError("no module named cutlass"))
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", broken, raising=False)
    with pytest.raises(BackendError, match=r"FA4, whose package flash_attn.cute.interface is installed: no module"):
        flash.activate()
    monkeypatch.undo()
    assert not flash._is_installed("no_such_package.no_such_module")
    assert flash._is_installed("torch.nn.attention")


@pytest.mark.parametrize("compiling", [False, True])
def test_flash_imports_nothing_under_a_compiler(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    activate = mock.Mock()
    monkeypatch.setattr(flash, "activate", activate)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: q)
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, 8, dtype=torch.bfloat16, device="cuda")
        assert flash.flash(q, q, q, 1.0) is q
    assert activate.call_count == (not compiling)


# Flex.


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.getLogger("torch.__trace").disabled = True
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, **options, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fused_flex._compiled.cache_clear()
    yield
    torch._dynamo.reset()
    fused_flex._compiled.cache_clear()


def flex(num_new: int, length: int, window: int | None = None, width: int = 8) -> None:
    """Compare a fused call with attention written out."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, t, width, generator=generator) for h, t in ((4, num_new), (2, length), (2, length)))
    rule = Visibility(torch.arange(length - num_new, length), torch.arange(length), window, None, None, last=True)
    mask = make_mask(rule, "flex", hides_nothing=False)
    parts = (rule.window, True, True)
    found = fused_flex.fused_flex(q, k, v, mask.blocks, parts, scale=0.5, enable_gqa=True)
    assert_close(found, eager_attention(q, k, v, make_mask(rule, "eager", hides_nothing=False), 0.5), 1e-5)


@pytest.mark.usefixtures("light")
@torch.no_grad()
def test_flex_takes_one_graph_for_all_lengths_of_a_kind() -> None:
    for kind, sizes in enumerate((((5, 5), (8, 8), (2, 7)), ((1, 9), (1, 64)))):
        for num_new, length in sizes:
            flex(num_new, length)
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == kind + 1


@pytest.mark.usefixtures("light")
@torch.no_grad()
def test_flex_takes_heads_of_any_number_of_widths() -> None:
    for width in (4, 6, 8, 10):
        flex(3, 5, width=width)


@pytest.mark.usefixtures("light")
@torch.no_grad()
def test_flex_that_is_compiled_again_and_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Told apart no more, they would share a graph.
    monkeypatch.setattr(fused_flex, "Kind", lambda *parts: 0)
    monkeypatch.setattr(fused_flex, "_MOST_GRAPHS", 1)
    flex(5, 5)
    with pytest.raises(BackendError, match="compiled anew for every call"):
        flex(1, 9)


def test_every_backend_has_a_function() -> None:
    assert set(backends._FUNCTIONS) == set(backends.BACKENDS)
    decoder = zoo.make(ZooCase("residual"))
    decoder.model._backend = "flash"
    with pytest.raises(BackendError, match="'flash' computes in"):
        decoder(some_tokens(1, 3))


# Masks of long prompts.


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("most_pairs", [1, 40])
@pytest.mark.parametrize(
    "case",
    [
        ZooCase("residual"),
        ZooCase("residual", {}, WINDOWED),
        ZooCase("residual", {}, LATENT),
        ZooCase("depth_attention", {}, LATENT),
        ZooCase("moda"),
        ZooCase("yoco"),
    ],
    ids=str,
)
@torch.no_grad()
def test_large_masks_are_made_for_some_queries_at_a_time(
    case: ZooCase, most_pairs: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, tokens = zoo.make(case, attention_backend=backend), some_tokens(2, 9)
    padding = torch.tensor([0, 3])

    def read(**rule: Any) -> list[Tensor]:
        return [decoder(tokens, **rule), *in_two(decoder, tokens, **rule)]

    expected = [read(), read(left_padding=padding)]
    made: list[int] = []
    dense = Visibility.dense
    monkeypatch.setattr(backends, "MOST_PAIRS", most_pairs)
    monkeypatch.setattr(Visibility, "dense", lambda rule: made.append(len(rule.queries)) or dense(rule))
    for ours, theirs in zip([read(), read(left_padding=padding)], expected, strict=True):
        for each, other in zip(ours, theirs, strict=True):
            assert_close(each, other)
    # Latents that Depth-Attention weighs keep the weights of all queries in any case.
    at_once = 2 * most_pairs // 9 or 1
    assert made
    assert max(made) <= at_once or case == ZooCase("depth_attention", {}, LATENT)


@torch.no_grad()
def test_entries_of_depth_go_in_parts_wherever_attention_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, tokens = zoo.make(ZooCase("moda")), some_tokens(2, 9)
    expected = in_two(decoder, tokens)
    monkeypatch.setattr(backends, "MOST_PAIRS", 1)
    monkeypatch.setattr(backends, "takes", lambda *heads: True)
    for each, other in zip(in_two(decoder, tokens), expected, strict=True):
        assert_close(each, other)


def test_the_last_of_longer_sequences_in_one_call() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, t, 8, generator=generator) for h, t in ((4, 3), (2, 7), (2, 7)))
    rule = Visibility(torch.arange(4, 7), torch.arange(7), None, None, None, last=True)
    found = backends.sdpa_attention(q, k, v, backends.AttentionMask(rule, causal=True), 0.5)
    assert_close(found, eager_attention(q, k, v, backends.AttentionMask(rule, rule.dense()), 0.5), 1e-5)


def in_two(decoder: Decoder, tokens: Tensor, **rule: Any) -> list[Tensor]:
    """Logits of tokens that come in two parts."""
    cache = decoder.new_cache(len(tokens))
    return [decoder(part, cache, **rule) for part in tokens.split(5, dim=1)]


def test_training_has_one_mask_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "MOST_PAIRS", 1)
    tokens = torch.arange(4)
    rule = Visibility(tokens, tokens, 2, None, None, last=True)
    assert make_mask(rule, "sdpa", hides_nothing=False).at_a_time is None
    with torch.no_grad():
        assert make_mask(rule, "sdpa", hides_nothing=False).at_a_time == 1


# What PyTorch has no kernel for on CUDA.


@pytest.mark.parametrize("num_queries", [1, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [False, True])
def test_no_groups_where_no_fused_kernel_takes_them(
    num_queries: int, dtype: torch.dtype, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append({"heads": (q.size(1), k.size(1)), **options})
        return torch.empty_like(q)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr("torch.nn.attention.bias.causal_lower_right", lambda *sizes: sizes)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        q, k = (torch.empty(2, h, t, 8, device="cuda", dtype=dtype) for h, t in ((4, num_queries), (2, 6)))
        rule = Visibility(torch.arange(6 - num_queries, 6), torch.arange(6), None, None, None, last=True)
        mask = backends.AttentionMask(rule, rule.dense() if hidden else None, causal=not hidden and num_queries > 1)
        assert backends.sdpa_attention(q, k, k, mask, 1.0).shape == q.shape
    [call] = calls
    if num_queries == 1:
        assert call["heads"] == (2, 2)
    elif hidden or dtype == torch.float32:
        assert call["heads"] == (4, 4)
        assert not call["enable_gqa"]
    else:
        assert call["heads"] == (4, 2)
        assert call["enable_gqa"]
        # Flash attention has a causal form for the last tokens of longer sequences.
        assert call.get("is_causal", False) == (num_queries == 6)
        assert call.get("attn_mask") == ((4, 6) if num_queries == 4 else None)


@pytest.mark.parametrize(("capability", "engine"), [((9, 0), "flash"), ((8, 0), "flash"), ((7, 5), "chunks")])
def test_flash_attention_runs_on_devices_that_have_it(
    capability: tuple[int, int], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        heads = torch.empty(1, 2, 4, 8, device="cuda", dtype=torch.bfloat16)
        assert sequence_attention.sequence_of(heads, heads, heads, None, True, 1.0).engine == engine


@pytest.mark.parametrize(
    ("width", "of_values", "capability", "taken"),
    [(64, 64, (9, 0), True), (64, 48, (9, 0), False), (264, 264, (9, 0), False), (64, 64, (7, 5), False)],
)
def test_what_flash_attention_takes(
    width: int, of_values: int, capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 2, 4, w, device="cuda", dtype=torch.float16) for w in (width, width, of_values))
        assert flash.takes(q, k, v) == taken
        assert not flash.takes(q.float(), k.float(), v.float())
