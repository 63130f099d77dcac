"""The library computes what the naive references define; the goldens anchor those from outside."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from golden_cases import READ, Golden, golden
from mixerzoo import ModelConfig, load_registry
from naive.attn_res import KimiBlock, KimiFull, Query, Snapshot
from naive.decoder import Sizes, TokenMixer, Trace, run
from naive.denseformer import DenseFormer
from naive.depth_attention import DepthAttention, source_layers
from naive.residual import Residual

MIXERS = sorted(load_registry().entries)
many_examples = settings(max_examples=3 * settings().max_examples)


def test_references_do_not_use_the_library() -> None:
    for path in (Path(__file__).parent / "naive").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in modules if name.startswith(("mixerzoo", "transformers", "zoo"))]


@pytest.mark.parametrize("mixer", MIXERS)
@many_examples
@given(data=st.data(), model=zoo.models(), seed=st.integers(0, 99))
def test_library_equals_reference(mixer: str, data: st.DataObject, model: dict[str, Any], seed: int) -> None:
    options = data.draw(zoo.OPTIONS[mixer], label="options")
    decoder = zoo.perturb(zoo.build(mixer, options, model), seed=seed)
    tokens = zoo.some_tokens(2, data.draw(st.integers(1, 5), label="length"), seed=seed)
    with torch.no_grad():
        zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))


@many_examples
@given(data=st.data(), model=zoo.models(), seed=st.integers(0, 99))
def test_library_equals_reference_for_any_slots_and_windows(
    data: st.DataObject, model: dict[str, Any], seed: int
) -> None:
    options = data.draw(zoo.plans(len(ModelConfig(**model).order)), label="plan")
    decoder = zoo.perturb(zoo.build("planned", options, model), seed=seed)
    tokens = zoo.some_tokens(2, data.draw(st.integers(1, 7), label="length"), seed=seed)
    with torch.no_grad():
        zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))


@pytest.mark.parametrize("case", zoo.CASES, ids=str)
@torch.no_grad()
def test_every_case_equals_its_reference(case: zoo.Case) -> None:
    tokens = zoo.some_tokens(2, 7)
    zoo.assert_close(zoo.shared(case)(tokens), zoo.naive_logits(zoo.shared(case), tokens))


@pytest.mark.parametrize("case", zoo.REGISTERED_CASES, ids=str)
@torch.no_grad()
def test_cached_values_are_the_reference_s_mixed_values(case: zoo.Case) -> None:
    decoder = zoo.shared(case)
    tokens = zoo.some_tokens(1, 5)
    trace = zoo.naive_run(decoder, tokens[0].tolist())
    cache = decoder.new_cache(1)
    stored: dict[int, Tensor] = {}
    append = cache.append

    def recording(slot: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        keys, values = append(slot, k, v)
        assert values is not None
        stored[slot] = values
        return keys, values

    cache.append = recording  # type: ignore[method-assign]
    decoder(tokens, cache)
    assert sorted(stored) == list(range(len(decoder.plan.order)))
    for step, values in stored.items():
        expected = torch.stack([torch.stack(heads) for heads in trace.values[step]], dim=1)
        zoo.assert_close(values[0], expected)


# The references against the goldens.


def begin_of(case: Golden) -> Callable[[Tensor], TokenMixer]:
    """The naive mixer with the golden's own parameters and config keys."""
    config, tensors = case.config, {name: tensor.double() for name, tensor in case.tensors.items()}
    if config.get("use_depth_attention"):
        return partial(
            DepthAttention,
            stride=config["depth_attention_stride"],
            recent_window=config["depth_attention_recent_window"],
        )
    if config.get("baseline_mode") == "denseformer":
        prefix = "model.densetransformer_dwa.alphas."
        alphas = {int(name.removeprefix(prefix)) + 1: a for name, a in tensors.items() if name.startswith(prefix)}
        return partial(
            DenseFormer,
            alphas=alphas,
            dilation=config["denseformer_dwa_dilation"],
            period=config["denseformer_dwa_period"],
        )
    if config.get("baseline_mode") == "attnres":
        num_layers = config["num_hidden_layers"]
        places = {2 * num_layers: "model.attnres_final_aggregator"}
        for layer in range(num_layers):
            places[2 * layer] = f"model.layers.{layer}.attnres_attn_aggregator"
            places[2 * layer + 1] = f"model.layers.{layer}.attnres_mlp_aggregator"
        queries = {
            number: Query(
                tensors[f"{place}.pseudo_query"],
                tensors[f"{place}.norm.weight"],
                tensors.get(f"{place}.recency_bias"),
            )
            for number, place in places.items()
        }
        method = Snapshot if case.facts["dialect"] == "snapshot" else KimiBlock
        return partial(method, queries=queries, eps=config["rms_norm_eps"], block_size=config["attnres_block_size"])
    return Residual


def sizes_of(case: Golden, k_norm: str) -> Sizes:
    return Sizes(
        num_heads=case.config["num_attention_heads"],
        num_kv_heads=case.config["num_key_value_heads"],
        head_dim=case.config["head_dim"],
        order=tuple(range(case.config["num_hidden_layers"])),
        norm_eps=case.config["rms_norm_eps"],
        rope_theta=case.config["rope_theta"],
        k_norm=k_norm,
    )


def traces(case: Golden, k_norm: str) -> list[Trace]:
    weights = {name: tensor.double() for name, tensor in case.tensors.items()}
    return [run(weights, sizes_of(case, k_norm), begin_of(case), row) for row in case.tokens.tolist()]


@pytest.mark.parametrize(("name", "k_norm"), [(name, order) for name in READ for order in golden(name).k_norms])
def test_reference_equals_golden(name: str, k_norm: str) -> None:
    case = golden(name)
    ran = traces(case, k_norm)
    logits = torch.stack([trace.logits for trace in ran])
    zoo.assert_close(logits, case.logits(k_norm), 1e-9)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), case.tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(case.loss(k_norm), abs=1e-9)
    if "mixed_value.0" not in case.expected:
        return
    for layer in range(case.config["num_hidden_layers"]):
        # [B, T, G, d], then [B, G, T, d]
        values = torch.stack([torch.stack([torch.stack(heads) for heads in trace.values[layer]]) for trace in ran])
        zoo.assert_close(values.transpose(1, 2), case.expected[f"mixed_value.{layer}"], 1e-9)
    for layer in range(1, case.config["num_hidden_layers"]):
        weights = [[mixer.alphas[layer] for mixer in trace.mixers] for trace in ran]  # type: ignore[attr-defined]
        alphas = torch.tensor(weights, dtype=torch.float64).transpose(1, 2)
        zoo.assert_close(alphas, case.expected[f"depth_alpha.{layer}"], 1e-9)


@pytest.mark.parametrize("name", [name for name in READ if golden(name).facts.get("sources")])
def test_reference_names_the_golden_s_sources(name: str) -> None:
    case = golden(name)
    stride, window = case.config["depth_attention_stride"], case.config["depth_attention_recent_window"]
    for layer, expected in case.facts["sources"].items():
        assert source_layers(int(layer), stride, window) == expected


@pytest.mark.parametrize(
    ("stride", "window", "expected"),
    [
        (2, 0, [[], [0], [0], [0, 2], [0, 2], [0, 2, 4]]),
        (3, 0, [[], [0], [0], [0], [0, 3], [0, 3]]),
        (6, 0, [[], [0], [0], [0], [0], [0]]),
        (2, 1, [[], [0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 4]]),
        (1, 0, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
        (0, -1, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    ],
)
def test_source_layers(stride: int, window: int, expected: list[list[int]]) -> None:
    assert [source_layers(layer, stride, window) for layer in range(6)] == expected


def test_blocks_of_one_are_full() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(9, 3, 8, generator=generator, dtype=torch.float64)
    queries = {number: Query(w=draw[0], gain=draw[1]) for number, draw in enumerate(draws) if number}
    full, blocks = KimiFull(draws[0, 2], queries, 1e-5), KimiBlock(draws[0, 2], queries, 1e-5, block_size=1)
    for draw in draws[1:]:
        zoo.assert_close(full.read(), blocks.read())
        for mixer in (full, blocks):
            mixer.write(draw[2])
    zoo.assert_close(full.finish(), blocks.finish())
