"""Reads the ``config.json`` of other projects: stock Llama, Mistral, Qwen2 and Qwen3, and reference implementations.

What this decoder does not compute is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mixerzoo.checkpoints.config_json import (
    HF_KEYS,
    MOST,
    check_carried,
    check_sizes,
    validated_model,
    validated_options,
)
from mixerzoo.errors import CheckpointError
from mixerzoo.mixer import Mixer, MixerConfig, ReferenceReading, blamed, load_registry
from mixerzoo.model import SCALINGS, ModelConfig
from mixerzoo.validation import shown

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


class _Family(NamedTuple):
    """What a model type means where its ``config.json`` is silent.

    Attributes:
        k_norm: whether key norms come before or after RoPE, if there are any.
        bias: which attention projections have a bias; None: the key ``attention_bias`` says.
        defaults: values of keys that are absent.
    """

    k_norm: Literal["pre_rope", "post_rope"]
    bias: Literal["none", "qkv"] | None
    defaults: Mapping[str, Any]


_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}
_FAMILIES = {
    "llama": _Family("post_rope", None, {"max_position_embeddings": 2048}),
    "mistral": _Family(
        "post_rope",
        "none",
        {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    ),
    "qwen2": _Family("post_rope", "qkv", _QWEN),
    "qwen3": _Family("pre_rope", None, {**_QWEN, "head_dim": 128}),
}

#: Values that must hold for such a config to mean this decoder; anything else is refused.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "partial_rotary_factor": (1.0, 1, None),
    "quantization_config": (None,),
}
#: Keys that do not change what a decoder computes.
_HARMLESS = {
    "_model_name_or_path",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "max_position_embeddings",
    "model_type",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
_READ_SEPARATELY = {
    "attention_bias",
    "baseline_mode",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "original_max_position_embeddings",
    "rope_parameters",
    "rope_scaling",
    "scale_embeds",
    "sliding_window",
    "use_qk_norm",
    "use_sliding_window",
}
_PLAIN_BASELINES = (None, "", "none", "vanilla", "baseline", "residual", "depth_attention")
#: Exists in the Depth-Attention release and is never applied.
_NEVER_APPLIED = "lm_head_layernorm.weight"
#: Old conversions store what the configuration says anyway.
_FREQUENCIES = ".rotary_emb.inv_freq"


class Foreign(NamedTuple):
    """What another project's files say before any weight is used.

    Attributes:
        config: of the decoder.
        mixer: its class.
        options: of the mixer.
        names: tensor name in the file → parameter name within the mixer.
        unused: names of tensors that no result depends on.
    """

    config: ModelConfig
    mixer: type[Mixer]
    options: MixerConfig
    names: Mapping[str, str]
    unused: frozenset[str]


def read_foreign(raw: Mapping[str, Any], shapes: Shapes, path: Path) -> Foreign:
    """What a ``config.json`` that is not ours means.

    Args:
        raw: its content.
        shapes: of the tensors beside it, by name.
        path: what errors call it.

    Raises:
        CheckpointError: this decoder does not compute such a model, a value is wrong, or no installed mixer reads
            the method.
    """
    kind = raw.get("model_type")
    family = _FAMILIES.get(str(kind))
    if family is None:
        raise CheckpointError(f"{path}: model_type is {_brief(kind)}; known: mixerzoo, {', '.join(_FAMILIES)}")
    for key, allowed in _REQUIRED_VALUES.items():
        if key in raw and raw[key] not in allowed:
            raise _not_computed(path, key, raw[key])
    given = {key: value for key, value in raw.items() if value is not None}
    sizes = {**family.defaults, **given}
    if raw.get("num_key_value_heads", 0) is None:
        # Not the family's default: as many as there are queries.
        sizes.pop("num_key_value_heads", None)
    keys = dict(HF_KEYS)
    check_carried({**raw, "max_position_embeddings": _longest(raw, path)}, path)
    fields: dict[str, Any] = {field: sizes[key] for field, key in HF_KEYS.items() if key in sizes}
    rope, keys["rope_scaling"] = _rope(raw, family, path)
    fields |= rope
    fields["attention_bias"], fields["mlp_bias"] = _biases(raw, str(kind), shapes, path)
    fields["qk_norm"] = any(name.endswith("self_attn.k_norm.weight") for name in shapes)
    fields["k_norm"] = family.k_norm
    fields["scale_embeddings"] = _flag(raw, "scale_embeds", path) or False
    # Where the defaults of all these formats differ from ours.
    fields.setdefault("norm_eps", 1e-6)
    promised = _flag(raw, "use_qk_norm", path)
    if promised is False and fields["qk_norm"]:
        raise CheckpointError(f"{path}: use_qk_norm is false, but the weights hold q/k norms")
    if promised and not fields["qk_norm"]:
        raise CheckpointError(f"{path}: use_qk_norm is true, but the weights hold no q/k norms")
    config = validated_model(fields, path, keys)
    check_sizes(config, shapes, path)
    # Only now is it safe to make something of so many layers.
    config = validated_model(fields | _window(raw, str(kind), config.num_layers, path), path, keys)
    mixer, reading = _recognise(raw, shapes, path)
    _name_ignored_keys(raw, path)
    return Foreign(
        config,
        mixer,
        validated_options(mixer, reading.options, path),
        reading.names,
        reading.unused | {_NEVER_APPLIED} | {name for name in shapes if name.endswith(_FREQUENCIES)},
    )


def records_k_norm(raw: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says if key norms come before or after RoPE: ours does, and Qwen3 by what it is.

    Args:
        raw: its content.
    """
    return raw.get("model_type") in ("mixerzoo", "qwen3")


def _flag(raw: Mapping[str, Any], key: str, path: Path) -> bool | None:
    value = raw.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise CheckpointError(f"{path}: {key} is {shown(value)}; it must be true or false")


def _count(value: Any, key: str, path: Path, *, least: int = 1) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST:
        return value
    raise CheckpointError(f"{path}: {key} is {shown(value)}; it must be a whole number of at least {least}")


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST:
        return float(value)
    raise CheckpointError(f"{path}: {key} is {shown(value)}; it must be a number over 0")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _not_computed(path: Path, key: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{path}: {key} is {_brief(value)}, which this decoder does not compute")


def _name_ignored_keys(raw: Mapping[str, Any], path: Path) -> None:
    known = {*HF_KEYS.values(), *_REQUIRED_VALUES, *_HARMLESS, *_READ_SEPARATELY}
    for entry in load_registry().entries.values():
        known |= entry.mixer.reference_keys
    ignored = sorted(key for key in raw if key not in known and raw[key] not in (None, False))
    if ignored:
        logger.warning("%s: keys that are not understood and were ignored: %s", path, ", ".join(ignored))


def _recognise(raw: Mapping[str, Any], shapes: Shapes, path: Path) -> tuple[type[Mixer], ReferenceReading]:
    entries = load_registry().entries
    found = {}
    for name, entry in entries.items():
        problem = f"{path}: mixer {name!r} cannot read this configuration"
        with blamed(entry.plugin, "reading a configuration", problem, CheckpointError):
            reading = entry.mixer.read_reference(raw, shapes)
        if reading is not None:
            found[name] = reading
    if len(found) > 1:
        raise CheckpointError(f"{path}: several mixers recognise this checkpoint: {', '.join(found)}")
    for name, reading in found.items():
        return entries[name].mixer, reading
    if raw.get("baseline_mode") not in _PLAIN_BASELINES:
        raise CheckpointError(
            f"{path}: baseline_mode is {_brief(raw['baseline_mode'])}, which no installed mixer reads"
        )
    return load_registry().get("residual").mixer, ReferenceReading(options={})


def _biases(raw: Mapping[str, Any], kind: str, shapes: Shapes, path: Path) -> tuple[str, bool]:
    attention, mlp = _flag(raw, "attention_bias", path), _flag(raw, "mlp_bias", path)
    always = _FAMILIES[kind].bias
    if attention and always is not None:
        raise CheckpointError(f"{path}: attention_bias is true, which means nothing in a model of type {kind}")
    if mlp and kind != "llama":
        raise CheckpointError(f"{path}: mlp_bias is true, which means nothing in a model of type {kind}")
    bias = always or ("qkvo" if attention else "none")
    biases = [name for name in shapes if name.endswith(".bias")]
    if bias != "none" and not any(".self_attn." in name for name in biases):
        reason = "attention_bias is true" if always is None else f"a model of type {kind} has biases of q, k and v"
        raise CheckpointError(f"{path}: {reason}, but the weights hold no bias of any attention")
    if mlp and not any(".mlp." in name for name in biases):
        raise CheckpointError(f"{path}: mlp_bias is true, but the weights hold no bias of any MLP")
    return bias, bool(mlp)


def _rope(raw: Mapping[str, Any], family: _Family, path: Path) -> tuple[dict[str, Any], str]:
    """``rope_theta`` and ``rope_scaling``; both may lie in either of two mappings, whose key comes back too."""
    key = "rope_scaling" if raw.get("rope_scaling") not in (None, {}) else "rope_parameters"
    given = {} if raw.get(key) is None else raw[key]
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise _not_computed(path, key, given)
    theta = _number(given.get("rope_theta", raw.get("rope_theta", 10000.0)), "rope_theta", path)
    if given.get("partial_rotary_factor") not in (None, 1.0):
        raise _not_computed(path, f"partial_rotary_factor of {key}", given["partial_rotary_factor"])
    kind = given.get("rope_type", given.get("type", "default"))
    options = {name: value for name, value in given.items() if value is not None and name not in _ABOUT_ROPE}
    if kind == "default":
        _refuse_rope_options(options, kind, key, path)
        return {"rope_theta": theta}, key
    if kind == "dynamic":
        raise CheckpointError(
            f"{path}: {key} has rope_type 'dynamic', which changes the keys of past tokens as the text grows, so no "
            "cache can hold them; remove it to use the model within its original length, where it does nothing"
        )
    if not isinstance(kind, str) or kind not in SCALINGS:
        known = ", ".join(["default", *SCALINGS])
        raise CheckpointError(
            f"{path}: {key} has rope_type {_brief(kind)}, which this decoder does not compute; known: {known}"
        )
    scaling = SCALINGS[kind].model_fields
    _refuse_rope_options({name: v for name, v in options.items() if name not in scaling}, kind, key, path)
    if "original_max_position_embeddings" in scaling:
        name = "original_max_position_embeddings"
        length = _longest(raw, path) or family.defaults["max_position_embeddings"]
        options[name] = next((_count(part[name], name, path) for part in (raw, given) if _says(part, name)), length)
        if kind == "yarn":
            options = {
                option: v for option, v in options.items() if not option.startswith("beta_") or _says(given, option)
            }
            options.setdefault("factor", length / options[name])
    for option, value in options.items():
        if isinstance(value, int | float) and value and not 1 / MOST < abs(value) < MOST:
            raise CheckpointError(f"{path}: {key}.{option} is {shown(value)}, which is too large or too small")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **options}}, key


def _says(given: Mapping[str, Any], key: str) -> bool:
    """Whether there is such a value; there, a 0 counts as absent."""
    value = given.get(key)
    return value is not None and (isinstance(value, bool) or value != 0)


def _longest(raw: Mapping[str, Any], path: Path) -> int | None:
    key = "max_position_embeddings"
    return _count(raw[key], key, path) if _says(raw, key) else None


#: Keys that say nothing about how frequencies are scaled, or that are read apart.
_ABOUT_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}


def _refuse_rope_options(options: Mapping[str, Any], kind: str, key: str, path: Path) -> None:
    unknown = sorted(options.keys() - {"original_max_position_embeddings"})
    if unknown:
        raise CheckpointError(f"{path}: {key} of type {kind!r} has {', '.join(unknown)}, which is not understood")


def _window(raw: Mapping[str, Any], kind: str, num_layers: int, path: Path) -> dict[str, Any]:
    """``sliding_window`` and ``sliding_layers``."""
    types = raw.get("layer_types")
    if types is not None and not isinstance(types, list):
        raise CheckpointError(f"{path}: layer_types is {shown(types)}; it must be a list with the type of each layer")
    switch = _flag(raw, "use_sliding_window", path)
    defaults = _FAMILIES[kind].defaults
    size = raw.get("sliding_window", defaults.get("sliding_window"))
    if kind.startswith("qwen") and switch:
        if types is None:
            first = raw.get("max_window_layers")
            first = _count(
                defaults["max_window_layers"] if first is None else first, "max_window_layers", path, least=0
            )
            types = ["full_attention" if layer < first else "sliding_attention" for layer in range(num_layers)]
        for found in types:
            if found not in ("full_attention", "sliding_attention"):
                raise CheckpointError(f"{path}: layer_types has {_brief(found)}, which this decoder does not compute")
        if len(types) != num_layers:
            raise CheckpointError(f"{path}: layer_types has {len(types)} entries for {num_layers} layers")
        layers = [layer for layer, found in enumerate(types) if found == "sliding_attention"]
        if size is None or not layers:
            return {}
        every = len(layers) == num_layers
        return {"sliding_window": _count(size, "sliding_window", path), "sliding_layers": None if every else layers}
    for found in types or ():
        if found != "full_attention":
            raise CheckpointError(f"{path}: layer_types has {_brief(found)}, which this decoder does not compute")
    if kind == "mistral" and size is not None:
        return {"sliding_window": _count(size, "sliding_window", path)}
    # Qwen writes a sliding_window even where it is switched off.
    if kind == "llama" and size is not None and switch is not False:
        raise _not_computed(path, "sliding_window", size)
    return {}
