"""One format: what either saves the other reads, keys set anew stay, and what cannot be read or built says why."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import zoo
from case import DEPTH
from hf_models import every_case, fresh, model_of, shared
from mixerzoo import load_checkpoint, save_checkpoint
from mixerzoo.checkpoints.config_json import HF_KEYS, OWN_KEYS
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.files import write_manifest
from mixerzoo.hf import MixerZooConfig
from mixerzoo.model.config import ModelConfig
from zoo import ZooCase, assert_close, some_tokens


@pytest.mark.parametrize("key", ["sliding_window", "layer_types"])
def test_what_follows_from_the_plan_cannot_be_set(key: str, tmp_path: Path) -> None:
    save_checkpoint(zoo.shared(ZooCase("residual")), tmp_path / "ours")
    for classes in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(CheckpointError, match=f"{key} follows from .*; set attention_window"):
            classes.from_pretrained(
                tmp_path / "ours", **{key: 4 if key == "sliding_window" else ["full_attention"] * 4}
            )
    assert AutoConfig.from_pretrained(tmp_path / "ours", attention_window=4).sliding_window == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [("sliding_window", 512), ("sliding_window", None), ("layer_types", ["full_attention"] * 4), ("layer_types", None)],
)
def test_what_follows_from_the_plan_is_not_contradicted(key: str, value: Any, tmp_path: Path) -> None:
    save_checkpoint(zoo.make(ZooCase("residual"), sliding_window=4), tmp_path)
    path = tmp_path / "config.json"
    config = AutoConfig.from_pretrained(tmp_path)
    raw = json.loads(path.read_text())
    same, other = ({**raw, key: given} for given in (getattr(config, key), value))
    path.write_text(json.dumps(same))
    for made in (AutoConfig.from_pretrained(tmp_path), MixerZooConfig(**same)):
        assert made.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}
    path.write_text(json.dumps(other))
    said = rf"{key} follows from .*; set attention_window"
    with pytest.raises(CheckpointError, match=said):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        MixerZooConfig(**other)


# One format.


@every_case
@torch.no_grad()
def test_what_transformers_saves_is_read_by_both_bit_for_bit(case: ZooCase, tmp_path: Path) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 7)
    save_checkpoint(decoder, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    logits = model(tokens).logits
    assert_close(logits, decoder(tokens))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert torch.equal(again(tokens).logits, logits)
    assert torch.equal(load_checkpoint(tmp_path / "theirs")(tokens), decoder(tokens))
    ours, theirs = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert {key: theirs.get(key) for key in ours if key != "torch_dtype"} | {"torch_dtype": theirs["dtype"]} == ours
    assert (tmp_path / "theirs" / "modeling_mixerzoo.py").read_text() == (
        tmp_path / "ours" / "modeling_mixerzoo.py"
    ).read_text()


@pytest.mark.parametrize(
    "model",
    [
        {"tie_embeddings": True},
        {"scale_embeddings": True, "qk_norm": False},
        {"attention_bias": "qkv", "mlp_bias": True, "num_kv_heads": None},
        {"sliding_window": 3, "sliding_layers": (0, 2)},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "k_norm": "post_rope"},
    ],
    ids=str,
)
@torch.no_grad()
def test_round_trip_of_every_convention(model: dict[str, Any], tmp_path: Path) -> None:
    decoder = zoo.make(DEPTH, **model)
    theirs = model_of(decoder)
    logits = theirs(some_tokens(2, 7)).logits
    assert_close(logits, decoder(some_tokens(2, 7)))
    theirs.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(some_tokens(2, 7)).logits, logits)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == load_checkpoint_config(decoder, tmp_path / "ours")
    assert torch.equal(loaded(some_tokens(2, 7)), decoder(some_tokens(2, 7)))


def load_checkpoint_config(decoder: Any, directory: Path) -> ModelConfig:
    save_checkpoint(decoder, directory)
    return load_checkpoint(directory).config


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    decoder, model = fresh(DEPTH, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    assert_close(model(some_tokens(2, 7)).logits, decoder(some_tokens(2, 7)), tolerance)
    assert model_of(decoder, dtype=torch.float64).dtype == torch.float64


def test_the_configuration_has_every_key_of_the_file_with_our_defaults() -> None:
    fields = MixerZooConfig()
    defaults = ModelConfig.model_fields
    for name, key in (HF_KEYS | OWN_KEYS).items():
        assert hasattr(fields, key), key
        if not defaults[name].is_required() and name not in ("num_kv_heads", "head_dim", "vocab_size", "loop"):
            assert getattr(fields, key) == defaults[name].default, key


def test_a_looped_decoder_counts_steps_in_memory_and_layers_in_the_file() -> None:
    config = shared(ZooCase("residual", {}, {**zoo.LOOPED, **zoo.POST_ROPE})).config
    assert (config.num_hidden_layers, config.num_physical_layers, len(config.layer_types)) == (6, 4, 6)
    assert config.to_dict()["num_hidden_layers"] == 4
    assert MixerZooConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mixer": {"name": "residal"}}, CheckpointError, "'residal' (did you mean 'residual'?)"),
        ({"mixer": {"name": "denseformer", "period": 0}}, CheckpointError, "mixer 'denseformer': period"),
        ({"hidden_act": "gelu"}, CheckpointError, "hidden_act is 'gelu'; this decoder computes 'silu'"),
        (
            {"num_key_value_heads": 3},
            CheckpointError,
            "num_attention_heads 4 is not divisible by num_key_value_heads 3",
        ),
        ({"head_dim": 7}, CheckpointError, "head_dim 7 is odd"),
        ({"mixer": {"name": "yoco", "window": 3}, "attention_window": 5}, MixerError, "know one window"),
        (
            {
                "attention": "mla",
                "mla": {"kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4},
                "num_key_value_heads": 2,
            },
            CheckpointError,
            "num_key_value_heads has no meaning with attention mla; remove it",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_why(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        MixerZooConfig(**change)


def test_a_checkpoint_without_its_weights_is_refused(tmp_path: Path) -> None:
    shared(DEPTH).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@torch.no_grad()
def test_the_form_that_was_saved_last_is_read(tmp_path: Path) -> None:
    _, model = fresh(DEPTH)
    for size in ("8KB", "1GB", "8KB", "8KB", "1GB"):
        model.lm_head.weight.mul_(1.5)
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "model.safetensors").exists() == (size == "1GB")
        logits = model(some_tokens(1, 4)).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(some_tokens(1, 4)).logits, logits)
        assert_close(load_checkpoint(tmp_path)(some_tokens(1, 4)), logits)


@torch.no_grad()
def test_what_is_saved_over_a_run_is_what_it_then_holds(tmp_path: Path) -> None:
    # Weights that are in memory as the file has them, and others.
    for width in (16, 20, 24, 28):
        directory = tmp_path / str(width)
        save_checkpoint(zoo.make(DEPTH, intermediate_size=width), directory)
        write_manifest(directory, ["config.json", "model.safetensors"])
        model = AutoModelForCausalLM.from_pretrained(directory)
        model.lm_head.weight.mul_(1.5)
        logits = model(some_tokens(1, 4)).logits
        model.save_pretrained(directory, is_main_process=False)
        assert (directory / "manifest.json").exists()
        model.save_pretrained(directory)
        assert_close(load_checkpoint(directory)(some_tokens(1, 4)), logits)


def test_a_configuration_is_saved_over_that_of_a_run(tmp_path: Path) -> None:
    save_checkpoint(zoo.make(DEPTH), tmp_path)
    write_manifest(tmp_path, ["config.json", "model.safetensors"])
    AutoConfig.from_pretrained(tmp_path, attention_window=4).save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path).config.sliding_window == 4


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    _, model = fresh(DEPTH)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    for given in (None, False):
        with pytest.raises(MixerError, match=f"use_safetensors is {given}, but weights are read from safetensors only"):
            AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=given)


# Keys that are set anew.


CHANGES = [
    {"attention_window": 3},
    {"loop": {"prelude": 0, "count": 2, "coda": 0}},
    {"num_hidden_layers": 2},
    {"mixer": {"name": "moda"}},
    {"mixer": {"name": "residual"}, "k_norm": "post_rope"},
    {"rope_theta": 50.0},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("way", ["from_pretrained", "from_config", "set"])
@torch.no_grad()
def test_a_changed_key_changes_the_model_and_stays_changed(change: dict[str, Any], way: str, tmp_path: Path) -> None:
    save_checkpoint(zoo.make(DEPTH), tmp_path / "ours")
    if way == "from_pretrained":
        with warnings.catch_warnings():
            # Weights that a smaller or another model has no use for are named.
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **change)
    elif way == "from_config":
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "ours", **change))
    else:
        config = AutoConfig.from_pretrained(tmp_path / "ours")
        for key, value in change.items():
            setattr(config, key, value)
        config.save_pretrained(tmp_path / "changed")
        again = AutoConfig.from_pretrained(tmp_path / "changed")
        assert again.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}
        model = AutoModelForCausalLM.from_config(config)
    model = model.double().eval()
    for key, value in change.items():
        if key != "mixer":
            assert model.config.to_dict()[key] == value
    tokens = some_tokens(2, 7)
    assert len(model.model.plan.order) == model.config.num_hidden_layers == len(model.config.layer_types)
    logits = model(tokens).logits
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(tokens).logits, logits)
    assert_close(load_checkpoint(tmp_path / "saved")(tokens), logits)


def test_keys_of_others_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rope_parameters is no key of mixerzoo; set rope_theta and rope_scaling"):
        MixerZooConfig(rope_parameters={"rope_type": "default", "rope_theta": 5.0})


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    shared(DEPTH).model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MixerZooModel"]
