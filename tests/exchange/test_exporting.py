"""Exported models are stock ones, and what no stock model computes is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from case import LATENT
from command_line import run
from mixerzoo import TextTokenizer, export_checkpoint, import_checkpoint, load_checkpoint, save_checkpoint, train
from mixerzoo.errors import CheckpointError
from runs import tiny_recipe
from stock import STOCK, TOKENS, exact, stock_model
from zoo import assert_close


@pytest.mark.parametrize(("kind", "changes"), STOCK, ids=str)
@torch.no_grad()
def test_an_exported_model_is_a_stock_one(kind: str, changes: Mapping[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    stock_model(kind, **changes).save_pretrained(tmp_path / "stock")
    TextTokenizer.for_bytes().save(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours", dtype="float64")
    result = run("export", tmp_path / "ours", "--format", kind, "--out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    assert "Carried over: tokenizer.json, tokenizer_config.json, generation_config.json" in result.output
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(model).__name__.lower().startswith(kind)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.bos_token_id, model.config.max_position_embeddings) == (1 if "qwen" not in kind else None, 64)
    assert_close(exact(model)(TOKENS).logits, load_checkpoint(tmp_path / "ours")(TOKENS))
    assert load_checkpoint(tmp_path / "back").config == load_checkpoint(tmp_path / "ours").config


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tokenizer", ["bpe", "bytes", None])
def test_an_exported_run_ends_texts_where_its_tokenizer_does(kind: str, tokenizer: str | None, tmp_path: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    bias = {"attention_bias": "qkv"} if kind == "qwen2" else {}
    save_checkpoint(zoo.build("residual", {}, {"qk_norm": False, **bias}, dtype=torch.float32), tmp_path / "run")
    ends = None
    if tokenizer is not None:
        text = TextTokenizer.for_bytes() if tokenizer == "bytes" else TextTokenizer.train_bpe(["a b c"] * 9, 260)
        text.save(tmp_path / "run")
        ends = text.end_of_text_id
    export_checkpoint(tmp_path / "run", tmp_path / "out", kind)  # type: ignore[arg-type]
    config = AutoConfig.from_pretrained(tmp_path / "out")
    for said in (config, GenerationConfig.from_model_config(config)):
        assert (said.bos_token_id, said.eos_token_id) == (None, ends)


@pytest.mark.parametrize(
    ("mixer", "model", "format", "reason"),
    [
        (
            "denseformer",
            {},
            "llama",
            "its mixer is 'denseformer', and stock models have the plain residual stream alone",
        ),
        ("residual", {}, "llama", "it has q/k norms (qwen3 has them)"),
        ("residual", {"k_norm": "post_rope"}, "qwen3", "its keys are normed after RoPE"),
        ("residual", {"qk_norm": False}, "qwen3", "it has no q/k norms"),
        ("residual", {"scale_embeddings": True}, "qwen3", "its embeddings are scaled"),
        ("residual", {"loop": zoo.LoopConfig(count=2)}, "qwen3", "its layers are looped"),
        ("residual", {"attention_bias": "qkv"}, "qwen3", "its attention_bias is qkv"),
        ("residual", {"qk_norm": False, "attention_bias": "qkvo"}, "qwen2", "its attention_bias is qkvo"),
        ("residual", {"mlp_bias": True}, "qwen3", "its MLP has biases"),
        ("residual", {"qk_norm": False, "sliding_window": 3}, "llama", "it has a sliding window"),
        (
            "residual",
            {"qk_norm": False, "sliding_window": 3, "sliding_layers": (1,)},
            "mistral",
            "it has a sliding window in some layers",
        ),
        ("residual", LATENT, "llama", "its attention is mla"),
    ],
)
def test_what_no_stock_model_computes_is_refused(
    mixer: str, model: Mapping[str, Any], format: str, reason: str, tmp_path: Path
) -> None:
    save_checkpoint(zoo.build(mixer, {}, model), tmp_path / "ours")
    result = run("export", tmp_path / "ours", "--format", format, "--out", tmp_path / "back")
    assert result.exit_code == 2
    assert result.stderr == f"Error: {tmp_path / 'ours'}: cannot be exported as {format}: {reason}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_run_says_for_which_length_it_was_trained(tmp_path: Path) -> None:
    run_directory = tmp_path / "run"
    train(tiny_recipe("mixer={name: residual}", "train.steps=4"), run_directory)
    newest = max((run_directory / "checkpoints").iterdir())
    for source in (run_directory, newest):
        for given in (source, tmp_path / f"imported-{source.name}"):
            if given is not source:
                import_checkpoint(source, given)
            target = tmp_path / f"exported-{given.name}"
            export_checkpoint(given, target, "qwen3")
            assert json.loads((target / "config.json").read_text())["max_position_embeddings"] == 32
    (run_directory / "recipe.yaml").write_text("model: {")
    result = run("export", newest, "--format", "qwen3", "--out", tmp_path / "none")
    assert result.exit_code == 2
    assert "the run's own recipe cannot be read" in result.stderr
    assert not (tmp_path / "none").exists()


def test_an_unknown_format_and_a_directory_that_exists(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown format 'gpt2'; known: llama, mistral, qwen2, qwen3"):
        export_checkpoint(llama, tmp_path / "back", "gpt2")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="exists already, and nothing is overwritten"):
        export_checkpoint(llama, tmp_path, "llama")
