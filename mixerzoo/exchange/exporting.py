"""Exports decoders with the plain residual stream as stock models that need no mixerzoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from mixerzoo.checkpoints import (
    CARRIED_KEYS,
    CONFIG_FILE,
    HF_KEYS,
    check_new,
    copy_companions,
    find_companions,
    load_checkpoint,
    new_directory,
    read_json,
    save_weights,
)
from mixerzoo.data import TextFormat
from mixerzoo.errors import CheckpointError
from mixerzoo.mixer import Plan
from mixerzoo.model import Decoder
from mixerzoo.runs import RECIPE_FILE, RunDirectory, home_of

Format = Literal["llama", "mistral", "qwen2", "qwen3"]

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_BIASES = {"llama": ("none", "qkvo"), "mistral": ("none",), "qwen2": ("qkv",), "qwen3": ("none", "qkvo")}


def export_checkpoint(source: str | Path, directory: str | Path, format: Format) -> list[str]:
    """Write a checkpoint of ours as a stock one, with its tokenizer.

    Args:
        source: the checkpoint; its mixer must be ``residual``.
        directory: must not exist, and appears only when it is complete.
        format: the model type to write.

    Returns:
        The names of the tokenizer's files, and of those that say how to generate, that were carried over.

    Raises:
        CheckpointError: the source cannot be read, the format has no such model (says why), or the directory exists.
        RunError: the source belongs to a run whose recipe cannot be read.
        OSError: the directory cannot be written.
    """
    if format not in get_args(Format):
        raise CheckpointError(f"unknown format {format!r}; known: {', '.join(get_args(Format))}")
    source, target = Path(source), Path(directory)
    check_new(target)
    find_companions(home_of(source))
    decoder = load_checkpoint(source)
    reasons = obstacles(decoder, format)
    if reasons:
        raise CheckpointError(f"{source}: cannot be exported as {format}: {'; '.join(reasons)}")
    raw = read_json(source / CONFIG_FILE)
    if raw.get("max_position_embeddings") is None:
        raw["max_position_embeddings"] = _trained_length(source)
    config = stock_config(decoder, format) | _ids(home_of(source))
    config |= {key: raw[key] for key in CARRIED_KEYS if raw.get(key) is not None}
    with new_directory(target) as partial:
        save_weights(decoder, partial)
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return copy_companions(home_of(source), partial)


def _ids(home: Path) -> dict[str, Any]:
    """The ids that begin and end texts; some formats take 1 and 2 where nothing is said, whatever these are."""
    ends = sorted(TextFormat.load(home).end_ids) if (home / "tokenizer.json").exists() else []
    return {"bos_token_id": None, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}


def _trained_length(source: Path) -> int | None:
    """The length that a run was trained with; without it transformers assumes a default of many thousand tokens."""
    home = home_of(source)
    return RunDirectory(home).recipe().data.sequence_length if (home / RECIPE_FILE).exists() else None


def obstacles(decoder: Decoder, format: Format) -> list[str]:
    """Why a decoder is none of a format's models; none where it is one."""
    config = decoder.config
    if decoder.mixer.name != "residual":
        return [f"its mixer is {decoder.mixer.name!r}, and stock models have the plain residual stream alone"]
    if config.attention != "gqa":
        return [f"its attention is {config.attention}"]
    reasons = []
    if decoder.plan.order != Plan.plain(range(config.num_layers)).order:
        reasons.append("its layers are looped")
    if config.scale_embeddings:
        reasons.append("its embeddings are scaled")
    if config.qk_norm and format != "qwen3":
        reasons.append("it has q/k norms (qwen3 has them)")
    if not config.qk_norm and format == "qwen3":
        reasons.append("it has no q/k norms")
    if config.qk_norm and config.k_norm == "post_rope":
        reasons.append("its keys are normed after RoPE")
    if config.attention_bias not in _BIASES[format]:
        reasons.append(f"its attention_bias is {config.attention_bias}")
    if config.mlp_bias and format != "llama":
        reasons.append("its MLP has biases")
    if config.sliding_window is not None and (format == "llama" or (format == "mistral" and config.sliding_layers)):
        reasons.append("it has a sliding window" + (" in some layers" if config.sliding_layers else ""))
    if format == "llama" and config.hidden_size % config.num_heads:
        reasons.append(f"hidden_size {config.hidden_size} is not divisible by its {config.num_heads} heads")
    return reasons


def stock_config(decoder: Decoder, format: Format) -> dict[str, Any]:
    """The ``config.json`` of a decoder that is one of a format's models."""
    config = decoder.config.model_copy(
        update={"num_kv_heads": decoder.shape.num_kv_heads, "head_dim": decoder.shape.head_dim}
    )
    fields = config.model_dump(mode="json", exclude_none=True)
    stock: dict[str, Any] = {
        "architectures": [f"{_CLASSES[format]}ForCausalLM"],
        "model_type": format,
        **{key: fields[field] for field, key in HF_KEYS.items()},
        "hidden_act": "silu",
        # The older of two spellings, which the newer versions of transformers read as well.
        "rope_scaling": fields.get("rope_scaling"),
        "torch_dtype": str(decoder.lm_head.weight.dtype).removeprefix("torch."),
    }
    if format in ("llama", "qwen3"):
        stock["attention_bias"] = config.attention_bias == "qkvo"
    if format == "llama":
        stock["mlp_bias"] = config.mlp_bias
        return stock
    stock["sliding_window"] = config.sliding_window
    if format != "mistral":
        sliding = config.sliding_layers if config.sliding_layers is not None else range(config.num_layers)
        windowed = config.sliding_window is not None
        stock["use_sliding_window"] = windowed
        stock["layer_types"] = [
            "sliding_attention" if windowed and layer in sliding else "full_attention"
            for layer in range(config.num_layers)
        ]
    return stock
