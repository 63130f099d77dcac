"""Every kind of malformed weights: safetensors, and shards with their index."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from malformed import CONTENTS, Malformed, replace

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
