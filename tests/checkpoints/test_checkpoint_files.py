"""What lies where a checkpoint's files should be: read only where it is a file, damaged or not; the rest in words."""

from __future__ import annotations

import json
import os
import stat
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from mixerzoo import export_checkpoint, import_checkpoint, load_checkpoint, save_checkpoint
from mixerzoo.checkpoints.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, read_json, weights_fingerprint
from mixerzoo.checkpoints.load import is_finite
from mixerzoo.errors import CheckpointError
from zoo import ZooCase


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    save_checkpoint(zoo.make(ZooCase("residual"), dtype=torch.float32), tmp_path / "saved")
    return tmp_path / "saved"


def refusal(directory: Path, **arguments: Any) -> str:
    """The message that loading ends with; it always names the place."""
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(directory, **arguments)
    assert str(directory) in str(failure.value)
    return str(failure.value)


def shards_of(directory: Path) -> list[str]:
    """Put the weights into two files with an index."""
    tensors = load_file(directory / WEIGHTS_FILE)
    (directory / WEIGHTS_FILE).unlink()
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    parts = [list(tensors)[n::2] for n in (0, 1)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, directory / file)
    weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return files


@pytest.mark.parametrize("depth", [40, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_json_of_any_depth(depth: int, brackets: str, tmp_path: Path) -> None:
    opening = "[" if brackets == "[]" else '{"a":'
    text = opening * depth + "0" + brackets[1] * depth
    (tmp_path / "file.json").write_text(f'{{"a": {text}}}')
    with pytest.raises(CheckpointError, match=r"file\.json: damaged: nested more than 32 levels deep"):
        read_json(tmp_path / "file.json")


def test_json_beyond_any_size(tmp_path: Path) -> None:
    with (tmp_path / "file.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="cannot be read: Is larger than 32 MiB"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE])
def test_a_pipe_in_place_of_a_file_does_not_block(name: str, saved: Path) -> None:
    (saved / name).unlink(missing_ok=True)
    os.mkfifo(saved / name)
    assert f"{name}: is a pipe, a socket or a device; it must be a file" in refusal(saved)
    if name != CONFIG_FILE:
        with pytest.raises(CheckpointError, match="is a pipe"):
            weights_fingerprint(saved)


def test_a_loop_of_links_and_a_link_to_a_device(saved: Path) -> None:
    (saved / CONFIG_FILE).unlink()
    (saved / CONFIG_FILE).symlink_to(CONFIG_FILE)
    assert "config.json: cannot be read: Too many levels of symbolic links" in refusal(saved)
    (saved / CONFIG_FILE).unlink()
    (saved / CONFIG_FILE).symlink_to("/dev/zero")
    assert "is a pipe, a socket or a device" in refusal(saved)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_unreadable_is_not_damaged(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tests may read everything, so the system's answer is made up."""

    def closed(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    if name == CONFIG_FILE:
        monkeypatch.setattr("mixerzoo.files.json_files.read_bytes", closed)
    else:
        monkeypatch.setattr("mixerzoo.checkpoints.layout.load_file", closed)
    message = refusal(saved)
    assert f"{name}: cannot be read: Permission denied" in message
    assert "damaged:" not in message


def test_a_tensor_in_two_shards(saved: Path) -> None:
    first, second = shards_of(saved)
    assert load_checkpoint(saved)
    whole = load_file(saved / second)
    save_file(whole | {"model.norm.weight": torch.ones(16), "lm_head.weight": torch.ones(1)}, saved / second)
    assert f"{second}: it has " in refusal(saved)
    assert f"and so has {first}: which is meant" in refusal(saved)


def test_an_index_that_names_the_other_shard(saved: Path) -> None:
    first, second = shards_of(saved)
    weight_map = json.loads((saved / INDEX_FILE).read_text())["weight_map"]
    name = next(iter(weight_map))
    (saved / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map | {name: second}}))
    assert f"{INDEX_FILE}: {name} is not in {second}, but in {first}" in refusal(saved)


@pytest.mark.parametrize(
    "name", ["a\0b.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", "weights.bin", "."]
)
def test_an_index_with_names_that_no_shard_has(name: str, saved: Path) -> None:
    shards_of(saved)
    (saved / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": name}}))
    refusal(saved)


def test_saving_deletes_nothing_but_shards(saved: Path, tmp_path: Path) -> None:
    first, second = shards_of(saved)
    (tmp_path / "precious").write_text("mine")
    (saved / "model-00001-of-00001.safetensors").symlink_to(tmp_path / "precious")
    (saved / "notes.safetensors").write_text("mine")
    names = [first, second, "model-00001-of-00001.safetensors", "notes.safetensors", CONFIG_FILE]
    for name in names[3:]:
        # A name that no shard has makes the whole index one that is not understood.
        (saved / INDEX_FILE).write_text(json.dumps({"weight_map": dict(enumerate(names[:3]))} | {"x": name}))
    (saved / INDEX_FILE).write_text(json.dumps({"weight_map": {str(n): name for n, name in enumerate(names[:4])}}))
    save_checkpoint(zoo.make(ZooCase("residual")), saved)
    left = {path.name for path in saved.iterdir()}
    assert left == {CONFIG_FILE, WEIGHTS_FILE, "modeling_mixerzoo.py", "notes.safetensors", names[2]}
    assert (tmp_path / "precious").read_text() == (saved / "notes.safetensors").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_the_umask_holds(umask: int, saved: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        decoder = load_checkpoint(saved)
        save_checkpoint(decoder, tmp_path / "again")
        import_checkpoint(saved, tmp_path / "imported")
    finally:
        os.umask(before)
    for directory in ("again", "imported"):
        for path in (tmp_path / directory, *(tmp_path / directory).iterdir()):
            allowed = 0o777 if path.is_dir() else 0o666
            assert stat.S_IMODE(path.stat().st_mode) == allowed & ~umask, path


# Weights that are not finite.


@pytest.mark.parametrize("dtype", zoo.DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = zoo.make(ZooCase("denseformer"), dtype=dtype)
    name = "model.layers.2.self_attn.v_proj.weight"
    with torch.no_grad():
        decoder.get_parameter(name)[1, 2] = value
    save_checkpoint(decoder, tmp_path / "saved")
    message = refusal(tmp_path / "saved")
    assert f"{name} has values that are not finite" in message
    assert "allow_non_finite=True" in message
    loaded = load_checkpoint(tmp_path / "saved", allow_non_finite=True)
    assert torch.equal(loaded.get_parameter(name).isfinite(), decoder.get_parameter(name).isfinite())
    with pytest.raises(CheckpointError, match="not finite"):
        import_checkpoint(tmp_path / "saved", tmp_path / "imported")
    with pytest.raises(CheckpointError, match="not finite"):
        export_checkpoint(tmp_path / "saved", tmp_path / "exported", "qwen3")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_weights_beyond_a_dtype(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors["lm_head.weight"][3, 3] = 1e6
    save_file(tensors, saved / WEIGHTS_FILE)
    assert "lm_head.weight is beyond the range of float16; choose another dtype" in refusal(saved, dtype="float16")
    assert load_checkpoint(saved, dtype="bfloat16")


def test_finite_means_every_number() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.linspace(-1, 1, 1000).to(dtype)
        assert is_finite(tensor)
        for value in (float("nan"), float("inf"), -float("inf")):
            changed = tensor.clone()
            changed[-1] = value
            assert not is_finite(changed)
    assert is_finite(torch.ones(0))
    assert is_finite(torch.ones(2, dtype=torch.int64))


# Sizes.


def sparse(path: Path, tensors: dict[str, list[int]]) -> None:
    """A safetensors file of zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 4
        for side in shape:
            size *= side
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)


def test_more_weights_than_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 1 << 24
    config = json.loads((saved / CONFIG_FILE).read_text()) | {"vocab_size": rows}
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    shapes = {name: list(tensor.shape) for name, tensor in load_file(saved / WEIGHTS_FILE).items()}
    shapes["lm_head.weight"][0] = shapes["model.embed_tokens.weight"][0] = rows
    sparse(saved / WEIGHTS_FILE, shapes)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 18, "SC_PAGE_SIZE": 1 << 12}[name])
    began = time.monotonic()
    assert "its weights take 2.0 GiB as float32, and this machine has 1.0 GiB of memory" in refusal(saved)
    assert time.monotonic() - began < 5


def test_layers_that_are_names_alone(saved: Path) -> None:
    layers = 200
    config = json.loads((saved / CONFIG_FILE).read_text()) | {"num_hidden_layers": layers}
    (saved / CONFIG_FILE).write_text(json.dumps(config))
    shapes = {name: list(tensor.shape) for name, tensor in load_file(saved / WEIGHTS_FILE).items()}
    shapes |= {f"model.layers.{n}.mlp.down_proj.weight": [0] for n in range(4, layers)}
    sparse(saved / WEIGHTS_FILE, shapes)
    began = time.monotonic()
    assert "model.layers.4.mlp.down_proj.weight has shape (0,)" in refusal(saved)
    assert time.monotonic() - began < 10


# What travels with weights.


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_a_link_out_of_the_checkpoint_is_not_carried_over(name: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (saved / name).symlink_to(tmp_path / "secret")
    for made in (
        lambda: import_checkpoint(saved, tmp_path / "new"),
        lambda: export_checkpoint(saved, tmp_path / "new", "qwen3"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}: is a link to .*secret, outside of the checkpoint"):
            made()
        assert not (tmp_path / "new").exists()


def test_the_links_of_the_hubs_cache_are_followed(saved: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / "rev").mkdir(parents=True)
    (saved / "generation_config.json").write_text('{"eos_token_id": 1}')
    for path in saved.iterdir():
        path.rename(home / "blobs" / path.name)
        (home / "snapshots" / "rev" / path.name).symlink_to(f"../../blobs/{path.name}")
    report = import_checkpoint(home / "snapshots" / "rev", tmp_path / "new")
    assert report.companions == ["generation_config.json"]
    assert not (tmp_path / "new" / "generation_config.json").is_symlink()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_damaged_companion_is_refused_before_anything_is_written(
    name: str, content: str, saved: Path, tmp_path: Path
) -> None:
    (saved / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}: damaged"):
        import_checkpoint(saved, tmp_path / "deep" / "new")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("place", ["new", "deep/er/new", "file/new", "x" * 250])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_read(
    place: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if place.endswith("new"):

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    for module in ("exchange.importing", "exchange.exporting"):
        monkeypatch.setattr(f"mixerzoo.{module}.load_checkpoint", lambda *_, **__: pytest.fail("weights were read"))
    for make in (
        lambda: import_checkpoint(saved, tmp_path / place),
        lambda: export_checkpoint(saved, tmp_path / place, "qwen3"),
    ):
        with pytest.raises(
            (OSError, CheckpointError), match=r"No space left|is a file; choose|name too long"
        ) as failure:
            make()
        assert str(tmp_path) in str(failure.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "saved"]


@pytest.mark.parametrize("make", ["import", "export", "save"])
def test_a_full_disk_leaves_nothing_and_is_named(
    make: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mixerzoo.files.atomic.sync", full)
    target = tmp_path / "deep" / "new"
    made = {
        "import": lambda: import_checkpoint(saved, target),
        "export": lambda: export_checkpoint(saved, target, "qwen3"),
        "save": lambda: save_checkpoint(load_checkpoint(saved), target),
    }
    with pytest.raises(OSError, match="No space left on device") as failure:
        made[make]()
    assert "new" in str(failure.value.filename)
    assert not list(tmp_path.glob("deep/*")) or make == "save"
    assert not list(tmp_path.glob("deep/new/*"))
