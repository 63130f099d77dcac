"""Every kind of malformed checkpoint; `malformed_checkpoints` runs the commands on them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malformed import COMMANDS, DEEP, Malformed, file_cases, write
from malformed_weights import shard_cases, weight_cases

# The keys of config.json.

#: A number that only scales what is computed: any positive one is a model, if perhaps not a good one.
CONVENTIONS = ("rope_theta", "rms_norm_eps", "initializer_range")


def flipped(value: Any) -> Any:
    """A value of another type."""
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, str):
        return 3
    return {"a": 1} if isinstance(value, list) else ["a"]


#: How a value is spoiled, by what it was; the text is put into the file as it is.
VALUES: dict[str, Callable[[Any], str]] = {
    "null": lambda value: "null",
    "flipped": lambda value: json.dumps(flipped(value)),
    "huge": lambda value: "1" + "0" * 30,
    "beyond int": lambda value: "9" * 5000,
    "2**40": lambda value: str(2**40),
    "negative": lambda value: "-7",
    "zero": lambda value: "0",
    "fraction": lambda value: "2.5",
    "NaN": lambda value: "NaN",
    "infinite": lambda value: "-Infinity",
    "empty text": lambda value: '""',
    "wide": lambda value: json.dumps(list(range(20_000))),
    "nested": lambda value: '{"a":' * 40 + "0" + "}" * 40,
    "deep": lambda value: "[" * DEEP + "]" * DEEP,
}


def config_cases(base: str, config: dict[str, Any]) -> Iterator[Malformed]:
    """Every key removed, and with each of `VALUES`."""
    for key, value in config.items():
        yield Malformed(f"{base}: config.json: {key} removed", base, lambda d, key=key: set_key(d, key, None))
        for how, made in VALUES.items():
            text = made(value)
            positive = how in ("2**40", "fraction", "huge")
            free = COMMANDS if key in CONVENTIONS and positive else ()
            yield Malformed(f"{base}: config.json: {key} {how}", base, lambda d, k=key, t=text: set_key(d, k, t), free)


def set_key(directory: Path, key: str, text: str | None, name: str = "config.json") -> None:
    """Write a key's value as text, or remove the key."""
    path = directory / name
    content = json.loads(path.read_text())
    content.pop(key, None)
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in content.items()]
    if text is not None:
        lines.append(f"{json.dumps(key)}: {text}")
    path.write_text("{" + ",\n".join(lines) + "}")


def inner_cases(base: str) -> Iterator[Malformed]:
    """Values that only mean something deeper down."""
    inner = {
        "loop": ['{"count": 1000000000}', '{"count": -1}', '{"prelude": 9}', '{"count": 2, "prelude": 1e9}'],
        "mixer": [
            '{"name": "denseformer", "period": 1000000000000}',
            '{"name": "residual", "unheard_of": 1}',
            '{"name": ""}',
            '{"name": "\\ud800"}',
            '{"name": "hyper_connections", "num_streams": 2000000000}',
            '{"name": "yoco", "window": 100000000000000000000}',
        ],
        "mla": ['{"kv_lora_rank": 1}', "[1, 2]"],
        "attention": ['"mla"', '"mha"'],
        "rope_scaling": ['{"rope_type": "yarn"}', '{"rope_type": "linear", "factor": -1}', '{"factor": {"a": 1}}'],
        "attention_window_layers": ["[0]", "[1, 0]", "[99999]"],
        "max_position_embeddings": ['"long"', "-1", "1e400", "[64]"],
        "eos_token_id": ['"</s>"', "[1, null]", "1e3"],
        "hidden_act": ['"gelu"', '["silu"]'],
        "mixer_plugin": ['{"distribution": "", "version": ""}'],
    }
    for key, texts in inner.items():
        for number, text in enumerate(texts):
            # The last entry of all says where the mixer came from, which only matters where it is not installed.
            free = COMMANDS if key == "mixer_plugin" else ()
            yield Malformed(f"{base}: {key} {number}", base, lambda d, k=key, t=text: set_key(d, k, t), free)
    plugin = '{"distribution": "", "version": ""}'
    yield Malformed(
        "ours: unknown mixer of a plugin without a name", base, lambda d: both(d, '{"name": "other"}', plugin)
    )


def both(directory: Path, mixer: str, plugin: str) -> None:
    set_key(directory, "mixer", mixer)
    set_key(directory, "mixer_plugin", plugin)


# Tokenizers.


def tokenizer_cases(base: str, tokenizer: dict[str, Any]) -> Iterator[Malformed]:
    """Damaged tokenizers; the weights load all the same."""
    without = ("load",)
    yield from file_cases(base, "tokenizer.json", without)
    spoiled = {
        "a half": lambda d: write(d / "tokenizer.json", (d / "tokenizer.json").read_bytes()[:-100]),
        "no model": lambda d: set_key(d, "model", None, "tokenizer.json"),
        "charsmap longer than memory": lambda d: set_key(
            d,
            "normalizer",
            json.dumps({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 64).decode()}),
            "tokenizer.json",
        ),
        "empty charsmap": lambda d: set_key(
            d, "normalizer", '{"type": "Precompiled", "precompiled_charsmap": ""}', "tokenizer.json"
        ),
        "bad pattern": lambda d: set_key(
            d,
            "pre_tokenizer",
            '{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}',
            "tokenizer.json",
        ),
        "unigram without vocabulary": lambda d: set_key(
            d, "model", '{"type": "Unigram", "unk_id": 5, "vocab": []}', "tokenizer.json"
        ),
        "id far beyond": lambda d: set_key(
            d,
            "added_tokens",
            json.dumps([{**tokenizer["added_tokens"][0], "id": 2**31}]),
            "tokenizer.json",
        ),
    }
    for name, spoil in spoiled.items():
        yield Malformed(f"{base}: tokenizer.json: {name}", base, spoil, without)
    for key, value in tokenizer.items():
        for how in ("flipped", "deep", "huge"):
            text = VALUES[how](value)
            # What means nothing to encoding and decoding may be anything.
            yield Malformed(
                f"{base}: tokenizer.json: {key} {how}",
                base,
                lambda d, k=key, t=text: set_key(d, k, t, "tokenizer.json"),
                # Some words of a tokenizer are optional, and another value is another tokenizer.
                COMMANDS if key in ("version", "normalizer", "decoder") and how == "flipped" else without,
            )
    for name in ("tokenizer_config.json", "generation_config.json"):
        # A list, or a text, is an object without keys to some of their readers.
        yield from file_cases(base, name, without)
    for key, text in {"eos_token": "3", "eos_token_id": '"x"', "temperature": '"hot"', "max_length": "-1"}.items():
        name = "tokenizer_config.json" if key == "eos_token" else "generation_config.json"
        yield Malformed(f"{base}: {name}: {key}", base, lambda d, n=name, k=key, t=text: set_key(d, k, t, n), COMMANDS)


def cases(bases: Path) -> list[Malformed]:
    """All of them, in an order that does not change."""
    made: list[Malformed] = []
    for base in ("ours", "llama", "qwen3"):
        config = json.loads((bases / base / "config.json").read_text())
        made += config_cases(base, config)
    made += inner_cases("ours")
    for base in ("ours", "llama"):
        made += file_cases(base, "config.json")
    made += weight_cases("ours")
    made += shard_cases("llama")
    made += tokenizer_cases("ours", json.loads((bases / "ours" / "tokenizer.json").read_text()))
    return made
