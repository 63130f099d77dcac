"""Checkpoints in the reference implementations' own layout give the numbers that those implementations give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import zoo
from golden_cases import NAMES, Golden, golden
from mixerzoo import AttentionCall, Decoder, load_checkpoint
from mixerzoo.checkpoints import load_config
from mixerzoo.errors import CheckpointError

LOGITS = [(name, order) for name in NAMES for order in golden(name).k_norms]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every golden as a checkpoint directory."""
    folder = tmp_path_factory.mktemp("goldens")
    return {name: golden(name).write(folder / name) for name in NAMES}


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def in_order(directory: Path, k_norm: Any, dtype: Any) -> Decoder:
    """A checkpoint with its key norms, if it has any, in one of the two orders."""
    return load_checkpoint(directory, dtype, k_norm if load_config(directory)[0].has_key_norms else None)


def test_every_case_is_here() -> None:
    assert len(NAMES) == 14
    assert {golden(name).facts.get("dialect") for name in NAMES} == {None, "kimi", "snapshot"}


@pytest.mark.parametrize(("name", "k_norm"), LOGITS)
@torch.no_grad()
def test_logits_and_loss_in_float64(name: str, k_norm: Any, directories: dict[str, Path]) -> None:
    case = golden(name)
    decoder = in_order(directories[name], k_norm, torch.float64)
    logits = decoder(case.tokens)
    zoo.assert_close(logits, case.logits(k_norm), 1e-9)
    assert float(loss_of(logits, case.tokens)) == pytest.approx(case.loss(k_norm), abs=1e-9)


@pytest.mark.parametrize(("name", "k_norm"), LOGITS)
@torch.no_grad()
def test_logits_and_loss_in_float32(name: str, k_norm: Any, directories: dict[str, Path]) -> None:
    case = golden(name)
    decoder = in_order(directories[name], k_norm, "float32")
    logits = decoder(case.tokens)
    assert logits.dtype == torch.float32
    zoo.assert_close(logits, case.logits(k_norm), 1e-4)
    assert float(loss_of(logits, case.tokens)) == pytest.approx(case.loss(k_norm), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_plain_load_is_post_rope_in_the_stored_dtype(name: str, directories: dict[str, Path]) -> None:
    decoder = load_checkpoint(directories[name])
    assert decoder.config.k_norm == "post_rope"
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in decoder.parameters())


@pytest.mark.parametrize(("name", "k_norm"), LOGITS)
@pytest.mark.parametrize("max_length", [None, 17], ids=["growing", "fixed"])
@torch.no_grad()
def test_cached_decode_token_by_token(
    name: str, k_norm: Any, max_length: int | None, directories: dict[str, Path]
) -> None:
    case = golden(name)
    decoder = in_order(directories[name], k_norm, torch.float64)
    cache = decoder.new_cache(2, max_length)
    logits = torch.cat([decoder(token, cache) for token in case.tokens.split(1, dim=1)], dim=1)
    zoo.assert_close(logits, case.logits(k_norm), 1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if "grad_norms" in golden(name).facts])
def test_gradient_norms(name: str, directories: dict[str, Path]) -> None:
    case = golden(name)
    (k_norm,) = case.k_norms
    decoder = in_order(directories[name], k_norm, torch.float64)
    loss_of(decoder(case.tokens), case.tokens).backward()
    gradients = {name: p.grad for name, p in decoder.named_parameters()}
    assert gradients.keys() == case.facts["grad_norms"].keys()
    for parameter, expected in case.facts["grad_norms"].items():
        assert float(gradients[parameter].norm()) == pytest.approx(expected, rel=1e-9, abs=1e-12), parameter


@pytest.mark.parametrize("name", [name for name in NAMES if "mixed_value.0" in golden(name).expected])
@torch.no_grad()
def test_mixed_values_depth_weights_and_hidden_states(name: str, directories: dict[str, Path]) -> None:
    case = golden(name)
    (k_norm,) = case.k_norms
    decoder = in_order(directories[name], k_norm, torch.float64)
    cache = decoder.new_cache(2)
    stored: dict[int, Tensor] = {}
    raw: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    streams: list[Tensor] = []
    append, mix_kv, read, finish = cache.append, decoder.mixer.mix_kv, decoder.mixer.read, decoder.mixer.finish

    def storing(slot: int, k: Any, v: Any) -> Any:
        stored[slot] = v
        return append(slot, k, v)

    def mixing(state: Any, call: AttentionCall) -> Any:
        raw[call.site.step] = (call.q, call.k, call.v)
        return mix_kv(state, call)

    def reading(state: Any, site: Any) -> Any:
        if site.branch == "attention":
            streams.append(state.x)
        return read(state, site)

    def finishing(state: Any) -> Tensor:
        streams.append(state.x)
        return finish(state)

    cache.append, decoder.mixer.mix_kv = storing, mixing  # type: ignore[method-assign]
    decoder.mixer.read, decoder.mixer.finish = reading, finishing  # type: ignore[method-assign]
    decoder(case.tokens, cache)

    layers = case.config["num_hidden_layers"]
    for layer in range(layers):
        zoo.assert_close(stored[layer], case.expected[f"mixed_value.{layer}"], 1e-9)
    for layer, stream in enumerate(streams):
        # Those are stored in float32; the last one is what the final norm reads.
        torch.testing.assert_close(stream.float(), case.expected[f"hidden.{layer}"], rtol=1e-6, atol=1e-6)
    for layer in range(1, layers):
        # The weights are what the mixed value is made of: ṽ = Σ α_j ṽ_j + α_l v_l.
        alpha = case.expected[f"depth_alpha.{layer}"]
        terms = [stored[j] for j in case.facts["sources"][str(layer)]] + [raw[layer][2]]
        zoo.assert_close(torch.einsum("bgtn,nbgtd->bgtd", alpha, torch.stack(terms)), stored[layer], 1e-9)
        q, keys = raw[layer][0], [raw[j][1] for j in case.facts["sources"][str(layer)]] + [raw[layer][1]]
        mean_q = q.unflatten(1, (keys[0].size(1), -1)).mean(2)
        scores = torch.stack([(mean_q * key).sum(-1) for key in keys], dim=-1) / q.size(-1) ** 0.5
        zoo.assert_close(scores.softmax(-1), alpha, 1e-9)
    sites = decoder.shape.sites()
    for layer, sources in case.facts["sources"].items():
        told = [site.layer for site in decoder.mixer.sources(sites[2 * int(layer)]) if site is not None]
        assert told == ([*sources, int(layer)] if sources else [])


def test_methods_without_a_mixer_are_refused(tmp_path: Path) -> None:
    directory = golden("vanilla_base").write(tmp_path, config={"baseline_mode": "unheard"})
    with pytest.raises(CheckpointError, match="baseline_mode is 'unheard', which no installed mixer reads"):
        load_checkpoint(directory)


# Variants of the layout, which no golden has, against the naive references.

DEPTH_ATTENTION = golden("depth_attention_gqa_s2_w0")


def loads_as(directory: Path, **expected: Any) -> Decoder:
    """Load in float64, compare options and logits, and return."""
    decoder = load_checkpoint(directory, dtype="float64")
    options = decoder.mixer.config.model_dump()
    assert {key: options[key] for key in expected} == expected
    tokens = DEPTH_ATTENTION.tokens[:, :6]
    with torch.no_grad():
        zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))
    return decoder


@pytest.mark.parametrize(
    ("config", "stride", "window"),
    [
        ({"depth_attention_stride": 3}, 3, 0),
        ({"depth_attention_stride": None, "depth_softmax_stride": 3}, 3, 0),
        ({"depth_attention_recent_window": None, "depth_recent_window": 2}, 2, 2),
        ({"depth_attention_stride": None}, 1, 0),
        ({"depth_attention_stride": 0}, 1, 0),
        ({"depth_attention_stride": -1, "depth_attention_recent_window": -1}, 1, 0),
        ({"depth_attention_recent_window": None}, 2, 0),
        ({"depth_attention_stride": 7, "depth_attention_recent_window": 1}, 7, 1),
    ],
    ids=str,
)
def test_strides_windows_and_their_aliases(config: dict[str, Any], stride: int, window: int, tmp_path: Path) -> None:
    directory = DEPTH_ATTENTION.write(tmp_path, config=config)
    # The reference counts a stride of 0 as 1: every layer is a source. So do the naive references.
    loads_as(directory, stride=stride, recent_window=window)


def test_scaled_embeddings(tmp_path: Path) -> None:
    decoder = loads_as(DEPTH_ATTENTION.write(tmp_path, config={"scale_embeds": True}))
    assert decoder.config.scale_embeddings
    plain = load_checkpoint(DEPTH_ATTENTION.write(tmp_path / "plain"), dtype="float64")
    assert not plain.config.scale_embeddings
    assert not torch.allclose(plain(DEPTH_ATTENTION.tokens), decoder(DEPTH_ATTENTION.tokens))


@pytest.mark.parametrize("head", ["absent", "equal"])
def test_tied_embeddings(head: str, tmp_path: Path) -> None:
    tensors = dict(DEPTH_ATTENTION.tensors)
    del tensors["lm_head.weight"]
    if head == "equal":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    decoder = loads_as(DEPTH_ATTENTION.write(tmp_path, config={"tie_word_embeddings": True}, tensors=tensors))
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    loss_of(decoder(DEPTH_ATTENTION.tokens), DEPTH_ATTENTION.tokens).backward()
    assert decoder.model.embed_tokens.weight.grad is not None


def test_norms_without_the_config_key(tmp_path: Path) -> None:
    assert loads_as(DEPTH_ATTENTION.write(tmp_path, config={"use_qk_norm": None})).config.qk_norm


def test_the_head_norm_is_never_applied(tmp_path: Path) -> None:
    tensors = dict(DEPTH_ATTENTION.tensors)
    tensors["lm_head_layernorm.weight"] = torch.full_like(tensors["lm_head_layernorm.weight"], 100.0)
    loud = load_checkpoint(DEPTH_ATTENTION.write(tmp_path / "loud", tensors=tensors), dtype="float64")
    del tensors["lm_head_layernorm.weight"]
    silent = load_checkpoint(DEPTH_ATTENTION.write(tmp_path / "silent", tensors=tensors), dtype="float64")
    assert torch.equal(loud(DEPTH_ATTENTION.tokens), silent(DEPTH_ATTENTION.tokens))
    zoo.assert_close(loud(DEPTH_ATTENTION.tokens), DEPTH_ATTENTION.logits("post_rope"), 1e-9)


@pytest.mark.parametrize("case", [DEPTH_ATTENTION, golden("attnres_b2")], ids=lambda case: case.name)
def test_shards_with_an_index(case: Golden, tmp_path: Path) -> None:
    directory = case.write(tmp_path)
    (directory / "model.safetensors").unlink()
    names = sorted(case.tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: case.tensors[name] for name in names[number::3]}, directory / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    decoder = load_checkpoint(directory, dtype="float64")
    with torch.no_grad():
        zoo.assert_close(decoder(case.tokens), case.logits("post_rope"), 1e-9)


def test_baseline_mode_and_parameters_disagree(tmp_path: Path) -> None:
    """The mode says DenseFormer, the weights hold none of its parameters: nothing is guessed."""
    vanilla = golden("vanilla_base")
    directory = vanilla.write(tmp_path, config={"baseline_mode": "denseformer"})
    with pytest.raises(CheckpointError, match=r"missing: model\.mixer\.weights\.1"):
        load_checkpoint(directory)


def test_two_methods_in_one_checkpoint_are_refused(tmp_path: Path) -> None:
    tensors = {**golden("attnres_b2").tensors, **golden("denseformer_d1_p1").tensors}
    directory = golden("attnres_b2").write(tmp_path, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"several mixers recognise this checkpoint: .*attn_res"):
        load_checkpoint(directory)
