"""Stock transformers models load as they are, or are refused by what they have."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from checkpoint_edits import rewrite_config, rewrite_tensors
from mixerzoo import load_checkpoint, save_checkpoint
from mixerzoo.checkpoints.config_json import own_config
from mixerzoo.checkpoints.foreign_config import read_foreign
from mixerzoo.errors import MixerError
from stock import KINDS, exact, stock_model
from zoo import assert_close, some_tokens


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_stock_transformers_checkpoints(
    kind: str, tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theta = {"rope_theta": 5000.0, "rope_type": "default"}
    model = stock_model(kind, tie_word_embeddings=tied, rms_norm_eps=3e-6, rope_parameters=theta)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="mixerzoo"):
        decoder = load_checkpoint(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("mixerzoo")]
    assert decoder.mixer.name == "residual"
    assert decoder.config.qk_norm == (kind == "qwen3")
    assert decoder.config.tie_embeddings == tied
    tokens = some_tokens(2, 9)
    assert_close(decoder(tokens), model(tokens).logits, 1e-5)
    doubled = load_checkpoint(tmp_path, dtype=torch.float64)
    assert_close(doubled(tokens), exact(model)(tokens).logits)


@torch.no_grad()
def test_a_sharded_stock_checkpoint(tmp_path: Path) -> None:
    model = stock_model("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    tokens = some_tokens(1, 5)
    assert_close(load_checkpoint(tmp_path, dtype="float64")(tokens), exact(model)(tokens).logits, 1e-9)


ROPE = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, every option": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 1.5,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, a ramp that ends after the last pair": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.01,
    },
    "yarn, its own factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
}


FEATURES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "llama", {"rope_parameters": {**rope, "rope_theta": 100.0}}) for name, rope in ROPE.items()),
    ("yarn", "qwen3", {"rope_parameters": {**ROPE["yarn"], "rope_theta": 1e6}}),
    ("bias", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("bias", "qwen3", {"attention_bias": True}),
    ("window", "mistral", {"sliding_window": 4}),
    ("window of some", "qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("window of some", "qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
    (
        "window by layer",
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    ("window of none", "qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3}),
    ("window switched off", "qwen3", {"use_sliding_window": False, "sliding_window": 4096}),
]


@pytest.mark.parametrize(("kind", "changes"), [f[1:] for f in FEATURES], ids=[f"{f[1]}, {f[0]}" for f in FEATURES])
@torch.no_grad()
def test_what_stock_models_have_besides(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = stock_model(kind, **changes)
    model.save_pretrained(tmp_path / "stock")
    decoder = load_checkpoint(tmp_path / "stock")
    tokens = some_tokens(2, 40)
    assert_close(decoder(tokens), model(tokens).logits, 1e-5)
    doubled = load_checkpoint(tmp_path / "stock", dtype=torch.float64)
    expected = exact(model)(tokens).logits
    assert_close(doubled(tokens), expected)
    # The cache keeps to the windows, and nothing is lost on the way through our own layout.
    save_checkpoint(doubled, tmp_path / "ours")
    again = load_checkpoint(tmp_path / "ours")
    assert again.config == doubled.config
    cache = again.new_cache(2)
    assert_close(torch.cat([again(part, cache) for part in tokens.split([1, 7, 2, 30], dim=1)], dim=1), expected)


@pytest.mark.parametrize("first", range(4))
def test_windows_counted_from_a_layer(first: int, tmp_path: Path) -> None:
    """Older files have no list of layer types."""
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": first}
    stock_model("qwen2", **changes).save_pretrained(tmp_path)
    listed = load_checkpoint(tmp_path).config
    rewrite_config(tmp_path, layer_types=None)
    assert load_checkpoint(tmp_path).config == listed
    windows = [None] * first + [4] * (3 - first)
    assert list(load_checkpoint(tmp_path).plan.windows) == windows


@pytest.mark.parametrize("rope", ROPE.values(), ids=ROPE)
def test_the_old_way_to_write_scaled_rope(rope: dict[str, Any], tmp_path: Path) -> None:
    stock_model("llama", rope_parameters={**rope, "rope_theta": 100.0}).save_pretrained(tmp_path)
    new = load_checkpoint(tmp_path).config
    old = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    rewrite_config(tmp_path, rope_parameters=None, rope_scaling=old, rope_theta=100.0)
    assert load_checkpoint(tmp_path).config == new
    assert new.rope_scaling is not None


@pytest.mark.parametrize("kind", KINDS)
def test_absent_keys_have_the_defaults_of_their_class(kind: str, tmp_path: Path) -> None:
    """What transformers' own classes fill in is what an absent key means."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 32}
    config = transformers.AutoConfig.for_model(
        kind, **sizes, vocab_size=8, rope_scaling={"type": "yarn", "factor": 2.0}
    )
    full = json.loads(config.to_json_string(use_diff=False))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (8, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 128),
    }
    shapes |= {"model.layers.0.self_attn.k_proj.bias": (64,)} if kind == "qwen2" else {}
    shapes |= {"model.layers.0.self_attn.k_norm.weight": (2,)} if kind == "qwen3" else {}
    short = {**sizes, "vocab_size": 8, "model_type": kind, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    ours, theirs = (read_foreign(raw, shapes, tmp_path) for raw in (short, full))
    assert own_config(ours.config, "residual", ours.options) == own_config(theirs.config, "residual", theirs.options)


def test_frequencies_of_old_conversions_are_left_alone(tmp_path: Path) -> None:
    stock_model("llama").save_pretrained(tmp_path)
    plain = load_checkpoint(tmp_path)
    rewrite_tensors(tmp_path, **{"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load_checkpoint(tmp_path)(some_tokens(1, 4)), plain(some_tokens(1, 4)))


def test_a_mixer_that_shares_across_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixerError, match=r"step 1 read keys or values of step 0, and model.sliding_layers"):
        zoo.build("cla", {"group": 2}, {"sliding_window": 4, "sliding_layers": (1,)})
    assert zoo.build("cla", {"group": 2}, {"sliding_window": 4, "sliding_layers": (0, 1)}).plan.windows == (
        4,
        4,
        None,
        None,
    )
    narrower = zoo.build("yoco", {"window": 2}, {"sliding_window": 3}).plan
    assert (narrower.window(0), narrower.window(3)) == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_new_biases_are_zero(dtype: torch.dtype) -> None:
    decoder = zoo.build("residual", {}, {"attention_bias": "qkv", "mlp_bias": True}, dtype=dtype)
    biases = {name: tensor for name, tensor in decoder.state_dict().items() if name.endswith("bias")}
    assert len(biases) == 4 * 6
    assert not any(tensor.any() for tensor in biases.values())
    plain = zoo.build("residual", {}, {}, dtype=dtype)
    assert torch.equal(decoder(some_tokens(1, 5)), plain(some_tokens(1, 5)))
