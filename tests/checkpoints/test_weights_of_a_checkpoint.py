"""Weights in several dtypes, forms and places."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from checkpoint_edits import refusal, rewrite_config, rewrite_tensors
from mixerzoo import load_checkpoint, save_checkpoint
from stock import stock_model
from zoo import ZooCase, some_tokens


@pytest.mark.parametrize(
    ("named", "expected"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float64", "float32"), ("auto", "float32"), (None, "float32")],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@torch.no_grad()
def test_weights_of_several_dtypes_get_one(
    key: str, named: str | None, expected: str, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_checkpoint(saved)
    rewrite_config(saved, **({"torch_dtype": None} | {key: named}))
    rewrite_tensors(saved, **{"model.norm.weight": whole.model.norm.weight.bfloat16()})
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(saved)
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {f"torch.{expected}"}
    (record,) = caplog.records
    assert record.getMessage() == f"{saved}: weights are stored as bfloat16 and float32; all are read as {expected}"
    assert torch.equal(loaded.lm_head.weight, whole.lm_head.weight.to(loaded.lm_head.weight.dtype))
    assert loaded(some_tokens(1, 4)).isfinite().all()
    assert load_checkpoint(saved, dtype="float64").model.norm.weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_that_cannot_be_computed_with(dtype: torch.dtype, saved: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite_tensors(saved, **{name: load_file(saved / "model.safetensors")[name].to(dtype)})
    found = str(dtype).removeprefix("torch.")
    for wanted in (None, "float32"):
        message = refusal(saved, dtype=wanted)
        assert f"{name} is stored as {found}; weights must be float64, float32, bfloat16, float16: convert" in message


def into_shards(directory: Path) -> list[str]:
    """Put the weights into two files with an index; model.safetensors stays."""
    tensors = load_file(directory / "model.safetensors")
    names = list(tensors)
    parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return list(parts)


def test_one_file_beside_shards(saved: Path) -> None:
    whole = load_checkpoint(saved).state_dict()
    shards = into_shards(saved)
    message = refusal(saved)
    assert "it has model.safetensors, and shards with model.safetensors.index.json: which of the two" in message
    (saved / "model.safetensors").rename(saved / "aside")
    assert all(torch.equal(t, whole[name]) for name, t in load_checkpoint(saved).state_dict().items())
    # An index that is left over from shards, or names the one file, takes nothing away from it.
    (saved / "aside").rename(saved / "model.safetensors")
    for shard in shards:
        (saved / shard).unlink()
    assert load_checkpoint(saved).state_dict().keys() == whole.keys()
    index = {"weight_map": dict.fromkeys(whole, "model.safetensors")}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert load_checkpoint(saved).state_dict().keys() == whole.keys()


@pytest.mark.parametrize("beside", [True, False], ids=["one file too", "shards alone"])
@torch.no_grad()
def test_saving_replaces_shards(beside: bool, saved: Path) -> None:
    into_shards(saved)
    if not beside:
        (saved / "model.safetensors").unlink()
    (saved / "mine.safetensors").write_bytes(b"")
    last = zoo.make(ZooCase("residual"))
    save_checkpoint(last, saved)
    kept = {"config.json", "mine.safetensors", "model.safetensors", "modeling_mixerzoo.py"}
    assert {path.name for path in saved.iterdir()} == kept
    assert torch.equal(load_checkpoint(saved).lm_head.weight, last.lm_head.weight)


def test_saving_removes_nothing_that_a_damaged_index_names(
    saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    precious = tmp_path_factory.mktemp("elsewhere") / "precious"
    precious.write_text("mine")
    for name in (str(precious), f"../{precious.parent.name}/precious"):
        (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        save_checkpoint(zoo.make(ZooCase("residual")), saved)
        assert precious.read_text() == "mine"
        assert not (saved / "model.safetensors.index.json").exists()


def test_weights_under_another_name(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "weights.safetensors")
    assert "it has no model.safetensors; it has weights.safetensors: rename what holds the" in refusal(saved)
    (saved / "model.safetensors").mkdir()
    assert refusal(saved) == f"{saved / 'model.safetensors'}: is a directory; it must be a file"


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "stock"])
def test_a_model_without_its_head(ours: bool, tmp_path: Path) -> None:
    from transformers import AutoModel

    import mixerzoo.hf  # noqa: F401  registers the classes

    if ours:
        save_checkpoint(zoo.make(ZooCase("denseformer"), dtype=torch.float32), tmp_path / "whole")
    else:
        stock_model("qwen3").save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bare")
    kind = "MixerZooModel" if ours else "Qwen3Model"
    assert f"it has no head: these are the weights of a bare model ({kind}), as AutoModel" in refusal(tmp_path / "bare")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    assert "it has no head (lm_head.weight); tie_word_embeddings must be true if" in refusal(tmp_path / "whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 100),
        *((key, 4096) for key in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim")),
    ],
)
def test_sizes_beyond_the_weights(key: str, value: int, saved: Path) -> None:
    rewrite_config(saved, **{key: value})
    assert f"{key} is {value}, " in refusal(saved)
    rewrite_config(saved, **{key: 10**18})
    assert f"{key}" in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 10**400}, "num_hidden_layers"),
        ({"attention_window": 2**63}, "attention_window"),
        ({"mixer": {"name": "denseformer", "period": 2**64}}, "mixer.period"),
        ({"loop": {"count": 10**30}}, "loop.count"),
    ],
)
def test_numbers_that_no_machine_counts_in(changes: dict[str, Any], name: str, saved: Path) -> None:
    rewrite_config(saved, **changes)
    assert f"{name} is 1" in refusal(saved) or f"{name} is 9" in refusal(saved)
    assert refusal(saved).endswith(", which is too large")


def test_a_loop_beyond_any_decoder(saved: Path) -> None:
    rewrite_config(saved, loop={"prelude": 1, "coda": 1, "count": 10**9})
    assert "loop.count" in refusal(saved)
    assert len(refusal(saved)) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", [64]),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("bos_token_id", 1.5),
        ("bos_token_id", [1]),
        ("pad_token_id", True),
        ("hidden_act", "gelu"),
        ("hidden_act", ["silu"]),
    ],
)
def test_what_a_decoder_does_not_read_and_its_users_do(key: str, value: Any, saved: Path) -> None:
    rewrite_config(saved, **{key: value})
    assert f"{key} is " in refusal(saved)


def test_a_configuration_without_a_vocabulary(saved: Path) -> None:
    rewrite_config(saved, vocab_size=None)
    assert "config.json: the key 'vocab_size' is required" in refusal(saved)


def test_options_far_beyond_any_machine(saved: Path) -> None:
    rewrite_config(saved, mixer={"name": "hyper_connections", "num_streams": 2 * 10**9})
    assert "config.json: no decoder of these sizes can be built: " in refusal(saved)
