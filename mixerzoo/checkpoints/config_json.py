"""The content of a checkpoint's ``config.json``, in the words of Hugging Face where it has words for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.mixer import Mixer, MixerConfig, load_registry, plugin_record, recorded_entry
from mixerzoo.model import ModelConfig
from mixerzoo.validation import problems, shown
from mixerzoo.version import __version__

#: Our field → Hugging Face's key, where both mean the same.
HF_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
#: Our field → the key that it is written under, where Hugging Face has none that means the same.
OWN_KEYS = {
    **{name: name for name in ("qk_norm", "k_norm", "scale_embeddings", "loop", "attention", "mla")},
    **{name: name for name in ("rope_scaling", "attention_bias", "mlp_bias")},
    # transformers derives a sliding_window of its own from the plan of the mixer.
    "sliding_window": "attention_window",
    "sliding_layers": "attention_window_layers",
}
#: Keys of others that our ``config.json`` keeps: a decoder has no use for them, its users have.
CARRIED_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
#: Positions are int64, and what is counted in them must be too.
MOST = 2**62
#: Leads transformers to the model's classes where nobody has imported mixerzoo (``trust_remote_code=True``).
SHIM_FILE = "modeling_mixerzoo.py"


def own_config(config: ModelConfig, mixer: str, options: MixerConfig) -> dict[str, Any]:
    """The content of ``config.json``, but for the dtype of the weights.

    Args:
        config: of the decoder.
        mixer: its name.
        options: its options.
    """
    if config.attention == "gqa":
        config = config.model_copy(
            update={"num_kv_heads": config.resolved_kv_heads, "head_dim": config.resolved_head_dim}
        )
    fields = config.model_dump(mode="json")
    module = SHIM_FILE.removesuffix(".py")
    return {
        "architectures": ["MixerZooForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{module}.MixerZooConfig",
            "AutoModel": f"{module}.MixerZooModel",
            "AutoModelForCausalLM": f"{module}.MixerZooForCausalLM",
        },
        "model_type": "mixerzoo",
        **{key: fields[field] for field, key in HF_KEYS.items()},
        **{key: fields[field] for field, key in OWN_KEYS.items()},
        "hidden_act": "silu",
        "mixer": {"name": mixer, **options.model_dump(mode="json")},
        "mixer_plugin": plugin_record(load_registry(), mixer, options),
        "mixerzoo_version": __version__,
    }


def read_own(raw: Mapping[str, Any], where: str | Path) -> tuple[ModelConfig, type[Mixer], MixerConfig]:
    """What a ``config.json`` of ours says: sizes, the mixer and its options.

    Args:
        raw: its content; keys that say nothing about these are left alone.
        where: what errors call it.

    Raises:
        CheckpointError: it is not complete, a value is wrong, or the mixer is not installed.
    """
    options = raw.get("mixer")
    if not isinstance(options, dict) or not isinstance(options.get("name"), str):
        raise CheckpointError(f"{where}: the key 'mixer' is missing or names no mixer")
    try:
        mixer = recorded_entry(load_registry(), options["name"], raw.get("mixer_plugin")).mixer
    except MixerError as error:
        raise CheckpointError(f"{where}: {error}") from error
    keys = HF_KEYS | OWN_KEYS
    if raw.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"{where}: hidden_act is {shown(raw['hidden_act'])}; this decoder computes 'silu'")
    check_carried(raw, where)
    for key in (*keys.values(), "mixer"):
        _refuse_huge(raw.get(key), key, where)
    fields = {field: raw[key] for field, key in keys.items() if key in raw}
    own = {key: value for key, value in options.items() if key != "name"}
    model = validated_model(fields, where, keys)
    return model, mixer, validated_options(mixer, own, where)


def validated_model(fields: Mapping[str, Any], path: str | Path, keys: Mapping[str, str]) -> ModelConfig:
    """The ``model`` section of what a ``config.json`` says.

    Args:
        fields: by our names.
        path: what errors call the file.
        keys: our name → the file's own.

    Raises:
        CheckpointError: lists every problem, by the file's own keys.
    """
    try:
        config = ModelConfig.model_validate(fields)
    except ValidationError as error:
        names = "|".join(keys)
        our_name = re.compile(rf"\b({names})\b")
        lines = []
        for problem in problems(error, ModelConfig, fields):
            parts = [keys.get(str(part), str(part)) for part in problem.path]
            message = our_name.sub(lambda match: keys[match[0]], problem.message)
            lines.append(f"{path}: {'.'.join(parts)}: {message}" if parts else f"{path}: {message}")
        raise CheckpointError("\n".join(lines)) from error
    if config.vocab_size is None:
        raise CheckpointError(f"{path}: the key {keys['vocab_size']!r} is required")
    return config


def check_carried(raw: Mapping[str, Any], where: str | Path) -> None:
    """Refuse `CARRIED_KEYS` with values that none of their users understands.

    Args:
        raw: the content of a ``config.json``.
        where: what errors call it.

    Raises:
        CheckpointError: an id is no whole number, or a length is none of at least 1.
    """
    for key in CARRIED_KEYS:
        value = raw.get(key)
        if value is None:
            continue
        several = isinstance(value, list) and key == "eos_token_id"
        numbers = value if several else [value]
        least = 1 if key == "max_position_embeddings" else -MOST
        if not all(isinstance(n, int) and not isinstance(n, bool) and least <= n < MOST for n in numbers):
            expected = "a whole number of at least 1" if least == 1 else "the id of a token"
            raise CheckpointError(f"{where}: {key} is {shown(value)}; it must be {expected}")


def _refuse_huge(value: Any, key: str, where: str | Path) -> None:
    """Refuse whole numbers that overflow where they are computed with, wherever they lie."""
    if isinstance(value, int) and abs(value) >= MOST:
        raise CheckpointError(f"{where}: {key} is {shown(value)}, which is too large")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        _refuse_huge(part, f"{key}.{name}", where)


def check_sizes(config: ModelConfig, shapes: Mapping[str, Sequence[int]], path: str | Path) -> None:
    """Refuse sizes that no decoder of these tensors has, before anything of such a size is built.

    Args:
        config: what was read.
        shapes: of the tensors that belong to it.
        path: what errors call the file.

    Raises:
        CheckpointError: there are more layers than tensors, or a size is longer than every side of every tensor.
    """
    if config.num_layers > len(shapes):
        raise CheckpointError(
            f"{path}: {HF_KEYS['num_layers']} is {config.num_layers}, more than there are tensors ({len(shapes)})"
        )
    longest = max(side for shape in shapes.values() for side in (0, *shape))
    for field in ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size"):
        size = getattr(config, field)
        if size is not None and size > longest:
            raise CheckpointError(
                f"{path}: {HF_KEYS[field]} is {size}, but the longest side of any tensor is {longest}"
            )


def validated_options(mixer: type[Mixer], options: Mapping[str, Any], path: str | Path) -> MixerConfig:
    """A mixer's options.

    Args:
        mixer: its class.
        options: by name.
        path: what errors call the file.

    Raises:
        CheckpointError: lists every problem.
    """
    try:
        return mixer.Config.model_validate(dict(options))
    except ValidationError as error:
        found = problems(error, mixer.Config, options)
        lines = [f"{path}: mixer {mixer.name!r}: {'.'.join(map(str, p.path))}: {p.message}" for p in found]
        raise CheckpointError("\n".join(lines)) from error
