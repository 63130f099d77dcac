"""Every kind of malformed checkpoint; `malformed_checkpoints` runs the commands on them."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What a checkpoint is given to: `mixerzoo.load_checkpoint`, and commands.
COMMANDS = ("load", "eval", "generate", "import", "export")
DEEP = 100_000


@dataclass(frozen=True)
class Malformed:
    """One way to spoil a checkpoint.

    Attributes:
        name: says which.
        base: the sound checkpoint that it is made from: ``ours``, ``llama`` or ``qwen3``.
        spoil: changes a copy of it.
        may_pass: commands that may accept it, although they give something else than for the sound one.
    """

    name: str
    base: str
    spoil: Callable[[Path], None]
    may_pass: tuple[str, ...] = ()


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


# Whole files.

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a NUL": b"\0",
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "text": b'"text"',
    "half": b'{"a": [1, 2',
    "two": b"{} {}",
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP + b"0" + b"}" * DEEP,
    "shallow list": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
}


def file_cases(base: str, name: str, may_pass: tuple[str, ...] = ()) -> Iterator[Malformed]:
    """A file with other content, and other things in its place."""
    for what, content in CONTENTS.items():
        yield Malformed(f"{base}: {name}: {what}", base, lambda d, c=content: write(d / name, c), may_pass)
    yield Malformed(f"{base}: {name}: pipe", base, lambda d: replace(d / name, os.mkfifo), may_pass)
    yield Malformed(f"{base}: {name}: directory", base, lambda d: replace(d / name, os.mkdir), may_pass)
    yield Malformed(
        f"{base}: {name}: device", base, lambda d: replace(d / name, lambda p: p.symlink_to("/dev/zero")), may_pass
    )
    yield Malformed(
        f"{base}: {name}: loop", base, lambda d: replace(d / name, lambda p: p.symlink_to(p.name)), may_pass
    )
    yield Malformed(f"{base}: {name}: huge", base, lambda d: holes(d / name, 1 << 36), may_pass)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def holes(path: Path, size: int) -> None:
    """A file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


# Safetensors.


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


NORM = "model.norm.weight"


def weight_cases(base: str) -> Iterator[Malformed]:
    """Every kind of broken safetensors."""

    def case(name: str, spoil: Callable[[Path, dict[str, Any], bytes], None], **more: Any) -> Malformed:
        def spoiled(directory: Path) -> None:
            path = directory / "model.safetensors"
            spoil(path, *header_of(path))

        return Malformed(f"{base}: safetensors: {name}", base, spoiled, **more)

    def entry(**changes: Any) -> Callable[[Path, dict[str, Any], bytes], None]:
        def spoil(path: Path, header: dict[str, Any], data: bytes) -> None:
            header[NORM] = {**header[NORM], **changes}
            write_header(path, header, data)

        return spoil

    for length in (0, 1, 7, 2**31, 2**63, 2**64 - 1):
        yield case(f"header length {length}", lambda p, h, d, n=length: write_header(p, h, d, n))
    for what, content in CONTENTS.items():
        yield case(f"header {what}", lambda p, h, d, c=content: write_header(p, c, d))
    yield case("header of 150 MB", lambda p, h, d: write_header(p, json.dumps(h).encode() + b" " * 150_000_000, d))
    yield case(
        "header of 50 MB", lambda p, h, d: write_header(p, {**h, **{f"x{n}": h[NORM] for n in range(400_000)}}, d)
    )
    for size in (0, 1, 8, 100, -1, -1000):
        yield case(f"cut at {size}", lambda p, h, d, s=size: p.write_bytes(p.read_bytes()[:s]))
    yield case("longer", lambda p, h, d: p.write_bytes(p.read_bytes() + b"more"))
    yield case("offsets beyond", entry(data_offsets=[10**9, 10**9 + 64]))
    yield case("offsets backwards", entry(data_offsets=[64, 0]))
    yield case("offsets overlap", entry(data_offsets=[0, 64]))
    yield case("offsets huge", entry(data_offsets=[2**63, 2**64 - 1]))
    yield case("offsets negative", entry(data_offsets=[-64, 0]))
    yield case("offsets of text", entry(data_offsets=["0", "64"]))
    yield case("no offsets", entry(data_offsets=None))
    yield case("shape huge", entry(shape=[2**40, 2**40]))
    yield case("shape negative", entry(shape=[-16]))
    yield case("shape other", entry(shape=[2, 8]))
    yield case("shape of text", entry(shape="16"))
    yield case("shape of many", entry(shape=[1] * 100_000 + [16]))
    for dtype in ("F16", "BF16", "I32", "F64", "F128", "F8_E4M3", "F4", "U64", "BOOL", "C64", "", 32, None):
        yield case(f"dtype {dtype}", entry(dtype=dtype))
    yield case("metadata of numbers", lambda p, h, d: write_header(p, {**h, "__metadata__": {"format": 3}}, d))
    yield case("metadata deep", lambda p, h, d: write_header(p, {**h, "__metadata__": {"format": [[]]}}, d))
    yield case("a tensor more", lambda p, h, d: write_header(p, {**h, "more": h[NORM]}, d))
    yield case("a tensor less", lambda p, h, d: write_header(p, {k: v for k, v in h.items() if k != NORM}, d))
    yield case("a name of control letters", lambda p, h, d: write_header(p, {**h, "\x1b[2J\n": zero(len(d))}, d))
    yield case("no tensors", lambda p, h, d: write_header(p, {}, b""))
    for value in (math.nan, math.inf):
        yield case(f"weights of {value}", lambda p, h, d, v=value: put(p, h, d, v))
    yield case("holes", lambda p, h, d: bigger(p, h, d, 1 << 36))
    for other in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        yield Malformed(f"{base}: pickled {other}", base, lambda d, n=other: (d / "model.safetensors").rename(d / n))
    for what, made in {"pipe": os.mkfifo, "directory": os.mkdir}.items():
        yield Malformed(f"{base}: safetensors: {what}", base, lambda d, m=made: replace(d / "model.safetensors", m))
    yield Malformed(
        f"{base}: safetensors: loop", base, lambda d: replace(d / "model.safetensors", lambda p: p.symlink_to(p))
    )


def zero(end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


def put(path: Path, header: dict[str, Any], data: bytes, value: float) -> None:
    start = header[NORM]["data_offsets"][0]
    write_header(path, header, data[:start] + struct.pack("<f", value) + data[start + 4 :])


def bigger(path: Path, header: dict[str, Any], data: bytes, size: int) -> None:
    """A vocabulary that is a hole in the file."""
    name, end = "lm_head.weight", len(data)
    width = header[name]["shape"][1]
    rows = size // (4 * width)
    # What was there stays, as a tensor without a use.
    header["old"] = header.pop(name)
    header[name] = {"dtype": "F32", "shape": [rows, width], "data_offsets": [end, end + rows * width * 4]}
    write_header(path, header, data)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + rows * width * 4)


# Shards.


def shards(directory: Path, index: Callable[[dict[str, str], list[str]], Any]) -> None:
    """Two shards, and an index made of what would be right."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    (directory / "model.safetensors").unlink()
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    weight_map = {}
    for number, file in enumerate(files):
        part = {name: tensors[name] for name in sorted(tensors)[number::2]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    made = index(weight_map, files)
    content = made if isinstance(made, bytes) else json.dumps(made).encode()
    (directory / "model.safetensors.index.json").write_bytes(content)


def shard_cases(base: str) -> Iterator[Malformed]:
    """Every kind of broken index."""

    def case(name: str, index: Callable[[dict[str, str], list[str]], Any], **more: Any) -> Malformed:
        return Malformed(f"{base}: index: {name}", base, lambda d: shards(d, index), **more)

    for what, content in CONTENTS.items():
        yield case(what, lambda m, f, c=content: c)
    for number, made in enumerate([None, [], {}, "x", 3]):
        yield case(f"weight_map {number}", lambda m, f, v=made: {"weight_map": v})
    names: list[Any] = ["../x.safetensors", "/etc/passwd", "", ".", "..", "a/b", "a\0b", "\ud800", 3, None, [], {}]
    names += ["x" * 5000, "missing.safetensors", "config.json", "model.bin", "model.safetensors.index.json"]
    for name in names:
        yield case(f"name {str(name)[:30]!r}", lambda m, f, n=name: {"weight_map": {**m, NORM: n}})
    yield case("other shard", lambda m, f: {"weight_map": {**m, NORM: next(x for x in f if x != m[NORM])}})
    yield case("unknown tensor", lambda m, f: {"weight_map": {**m, "unknown": f[0]}})
    yield case("one shard", lambda m, f: {"weight_map": {k: v for k, v in m.items() if v == f[0]}})
    yield case("total_size wrong", lambda m, f: {"weight_map": m, "metadata": {"total_size": "x"}})

    def twice(directory: Path) -> None:
        shards(directory, lambda m, f: {"weight_map": m})
        shutil.copy(directory / "model-00001-of-00002.safetensors", directory / "model-00003-of-00002.safetensors")
        index = directory / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["again"] = "model-00003-of-00002.safetensors"
        index.write_text(json.dumps(content))

    yield Malformed(f"{base}: index: tensors in two shards", base, twice)

    def link(directory: Path) -> None:
        shards(directory, lambda m, f: {"weight_map": m})
        path = directory / "model-00001-of-00002.safetensors"
        replace(path, lambda p: p.symlink_to(p.name))

    yield Malformed(f"{base}: index: a shard that is a loop of links", base, link)


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
