"""What is saved loads bit for bit, and checkpoints of other projects' methods load too."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import zoo
from case import LATENT
from checkpoint_edits import refusal
from golden_cases import golden
from mixerzoo import load_checkpoint, load_registry, save_checkpoint
from mixerzoo.checkpoints.save import config_dict
from mixerzoo.errors import CheckpointError
from zoo import ZooCase, some_tokens

every_registered_case = pytest.mark.parametrize("case", zoo.REGISTERED_CASES, ids=str)


# Round trip.


@every_registered_case
@pytest.mark.parametrize("dtype", zoo.DTYPES, ids=str)
@torch.no_grad()
def test_round_trip_is_bit_for_bit(case: ZooCase, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = zoo.make(case, dtype=dtype)
    save_checkpoint(decoder, tmp_path / "deep" / "folder")
    loaded = load_checkpoint(tmp_path / "deep" / "folder")
    assert type(loaded.mixer) is type(decoder.mixer)
    assert loaded.mixer.config == decoder.mixer.config
    assert loaded.config == decoder.config
    ours, theirs = loaded.state_dict(), decoder.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(some_tokens(2, 4)), decoder(some_tokens(2, 4)))


@pytest.mark.parametrize(
    "model",
    [
        {"tie_embeddings": True},
        {"qk_norm": False},
        {"k_norm": "post_rope"},
        {"scale_embeddings": True},
        {"rope_theta": 500000.0, "norm_eps": 1e-6, "init_std": 0.5},
        {"num_kv_heads": None},
        {"head_dim": None},
        {"num_heads": 6, "num_kv_heads": 1, "head_dim": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_round_trip_of_every_convention(model: dict[str, Any], tmp_path: Path) -> None:
    decoder = zoo.make(ZooCase("depth_attention"), **model)
    save_checkpoint(decoder, tmp_path)
    loaded = load_checkpoint(tmp_path)
    resolved = {"num_kv_heads": decoder.shape.num_kv_heads, "head_dim": decoder.shape.head_dim}
    assert loaded.config == decoder.config.model_copy(update=resolved)
    assert torch.equal(loaded(some_tokens(2, 4)), decoder(some_tokens(2, 4)))
    assert loaded.num_parameters() == decoder.num_parameters()


def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    decoder = zoo.make(ZooCase("residual"), tie_embeddings=True)
    save_checkpoint(decoder, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@torch.no_grad()
def test_dtype_and_k_norm_can_be_chosen(tmp_path: Path) -> None:
    decoder = zoo.make(ZooCase("depth_attention"), dtype=torch.float32)
    save_checkpoint(decoder, tmp_path)
    for dtype in (torch.float64, "float64"):
        loaded = load_checkpoint(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
        assert torch.equal(loaded.lm_head.weight.float(), decoder.lm_head.weight)
    other = load_checkpoint(tmp_path, k_norm="post_rope")
    assert (decoder.config.k_norm, other.config.k_norm) == ("pre_rope", "post_rope")
    assert not torch.allclose(other(some_tokens(1, 4)), decoder(some_tokens(1, 4)))
    assert load_checkpoint(tmp_path, attention_backend="eager").config.attention_backend == "eager"


@pytest.mark.parametrize("model", [LATENT, {"qk_norm": False}], ids=["latent attention", "no q/k norms"])
def test_an_order_of_key_norms_needs_some(model: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(zoo.make(ZooCase("residual", model=model)), tmp_path)
    with pytest.raises(
        CheckpointError, match="it has no q/k norms, so k_norm 'post_rope' has no meaning; leave it out"
    ):
        load_checkpoint(tmp_path, k_norm="post_rope")


def test_the_config_is_plain_and_says_where_the_mixer_is_from(tmp_path: Path) -> None:
    decoder = zoo.make(ZooCase("attn_res", {"block_size": 3}))
    save_checkpoint(decoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == config_dict(decoder)
    assert config["model_type"] == "mixerzoo"
    assert config["mixer"] == {"name": "attn_res", "dialect": "kimi", "block_size": 3, "recency_bias": 3.0}
    assert config["mixer_plugin"]["distribution"] == load_registry().get("attn_res").distribution
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]) == (16, 4, 2)
    assert config["torch_dtype"] == "float64"


def test_saving_twice_leaves_the_last_and_nothing_else(tmp_path: Path) -> None:
    save_checkpoint(zoo.make(ZooCase("denseformer")), tmp_path)
    last = zoo.make(ZooCase("residual"))
    save_checkpoint(last, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "modeling_mixerzoo.py",
    ]
    assert torch.equal(load_checkpoint(tmp_path).lm_head.weight, last.lm_head.weight)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = zoo.make(ZooCase("residual"))
    save_checkpoint(decoder, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mixerzoo.checkpoints.save.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(zoo.make(ZooCase("denseformer")), tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).lm_head.weight, decoder.lm_head.weight)


# Other projects' checkpoints.


VANILLA = golden("vanilla_base")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known: mixerzoo, llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type is None; known: "),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling has rope_type 'longrope', which"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling has rope_type 'dynamic', which changes"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: the key 'factor' is required"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "rope_scaling.factor: "),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
            "of type 'linear' has beta, which is not",
        ),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "'default' has mrope_section, which"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters is {'full_attention'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor of rope_parameters is 0.5"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'; it must be a number over 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which this decoder does not compute"),
        ({"attention_bias": True}, "attention_bias is true, but the weights hold no bias of any"),
        ({"mlp_bias": True}, "mlp_bias is true, but the weights hold no bias of any MLP"),
        ({"mlp_bias": "yes"}, "mlp_bias is 'yes'; it must be true or false"),
        (
            {"model_type": "mistral", "attention_bias": True},
            "attention_bias is true, which means nothing in a model of",
        ),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias is true, which means nothing in a model of type qwen3"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, which this decoder does not"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["sliding_attention"]},
            "layer_types has 1 entries for",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear_attention"]},
            "layer_types has 'linear_attention', which",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 is not divisible by num_key_value_heads 3"),
        (
            {"model_type": "qwen2"},
            "a model of type qwen2 has biases of q, k and v, but the weights hold no bias of any",
        ),
        ({"use_qk_norm": False}, "use_qk_norm is false, but the weights hold q/k norms"),
        ({"hidden_size": None}, "the key 'hidden_size' is required"),
        ({"baseline_mode": "unheard"}, "baseline_mode is 'unheard', which no installed mixer reads"),
    ],
    ids=str,
)
def test_foreign_configurations_that_mean_something_else(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(VANILLA.write(tmp_path, config=config))


def test_defaults_of_keys_that_are_absent(tmp_path: Path) -> None:
    keys = [
        "rms_norm_eps",
        "rope_theta",
        "head_dim",
        "tie_word_embeddings",
        "scale_embeds",
        "hidden_act",
        "use_qk_norm",
    ]
    config = load_checkpoint(VANILLA.write(tmp_path, config=dict.fromkeys(keys))).config
    assert (config.norm_eps, config.rope_theta, config.resolved_head_dim) == (1e-6, 10000.0, 8)
    assert (config.tie_embeddings, config.scale_embeddings, config.qk_norm) == (False, False, True)
    many = golden("depth_attention_mha_s3_w1_noqknorm").write(tmp_path / "many", config={"num_key_value_heads": None})
    assert load_checkpoint(many).config.resolved_kv_heads == 8


def test_norms_that_the_configuration_promises(tmp_path: Path) -> None:
    tensors = {name: t for name, t in VANILLA.tensors.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))}
    assert "use_qk_norm is true, but the weights hold no q/k norms" in refusal(VANILLA.write(tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "mixer", "config"),
    [
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_stride": "2"}),
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_stride": 2.5}),
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_recent_window": [1]}),
        ("denseformer_d1_p1", "denseformer", {"denseformer_dwa_dilation": 0}),
        ("denseformer_d1_p1", "denseformer", {"denseformer_dwa_period": "1"}),
        ("attnres_b2", "attn_res", {"attnres_block_size": 0}),
        ("attnres_b2", "attn_res", {"attnres_recency_bias_init": "high"}),
    ],
    ids=str,
)
def test_mixer_keys_of_the_wrong_kind(name: str, mixer: str, config: dict[str, Any], tmp_path: Path) -> None:
    assert f"mixer '{mixer}'" in refusal(golden(name).write(tmp_path, config=config))


@pytest.mark.parametrize("name", ["vanilla_base", "attnres_b2", "denseformer_d1_p1", "depth_attention_gqa_s2_w0"])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_foreign_configurations_that_lack_a_size(name: str, key: str, tmp_path: Path) -> None:
    assert key in refusal(golden(name).write(tmp_path, config={key: None}))


def test_keys_that_are_not_understood_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = VANILLA.write(tmp_path, config={"residual_multiplier": 0.5, "unset": False, "bos_token_id": 1})
    with caplog.at_level(logging.WARNING):
        load_checkpoint(directory)
    (record,) = caplog.records
    assert record.getMessage().endswith("keys that are not understood and were ignored: residual_multiplier")
