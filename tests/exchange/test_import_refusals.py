"""What cannot be imported ends in words and leaves nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from command_line import run
from stock import stock_model


def no_shard(directory: Path) -> None:
    model = stock_model("llama")
    shutil.rmtree(directory)
    model.save_pretrained(directory, max_shard_size="8KB")
    next(directory.glob("model-00002-*.safetensors")).unlink()


def set_key(key: str, value: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, key: value}))

    return change


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def misshapen(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 24)
    save_file(tensors, directory / "model.safetensors")


def cut_short(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def several_gguf(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (directory / name).write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_key("rope_parameters", {"rope_type": "longrope", "factor": 2.0}), "has rope_type 'longrope', which this"),
        (no_shard, "it has no model-00002-of-"),
        (misshapen, "q_proj.weight has shape (3, 24); the configuration calls for (32, 24)"),
        (set_key("model_type", "gpt2"), "model_type is 'gpt2'; known: mixerzoo, llama, mistral, qwen2, qwen3"),
        (pickled, "it has no model.safetensors; pytorch_model.bin: pickled weights are not read, convert them"),
        (cut_short, "model.safetensors: damaged or cut short"),
        (several_gguf, "it holds several models, name one: a.gguf, b.gguf"),
        (lambda directory: (directory / "config.json").unlink(), "not a checkpoint: it has no config.json"),
        (shutil.rmtree, "no such file or directory"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_nothing(
    damage: Callable[[Path], None], message: str, llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(llama, tmp_path / "source")
    damage(tmp_path / "source")
    result = run("import", tmp_path / "source", "--out", tmp_path / "deep" / "ours")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {tmp_path / 'source'}")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixer", "denseformr"], "no mixer is named 'denseformr' (did you mean 'denseformer'?)"),
        (["--mixer", "denseformer", "mixer.perod=2"], "mixer.perod: unknown key (did you mean 'period'?)"),
        (["mixer.period=2"], "mixer.period=2: an option of which mixer? Name it with --mixer"),
        (["mixer=denseformer"], "mixer: expected a mapping"),
        (["--mixer", "residual", "model.num_layers=2"], "model: only options of the mixer can be set here"),
        (
            ["--mixer", "residual", "mixer.name=cla"],
            "override 'mixer.name=cla': --mixer says this too; leave one of them out",
        ),
        (["--mixer", "residual", "mixer={name: cla}"], "--mixer says this too; leave one of them out"),
        (["--dtype", "int8"], "weights cannot be of dtype 'int8'"),
        (["--mixer", "hyper_connections", "mixer.streams=zwei"], "mixer.streams"),
    ],
)
def test_wrong_options_of_import(arguments: list[str], message: str, llama: Path, tmp_path: Path) -> None:
    result = run("import", llama, "--out", tmp_path / "ours", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["runs/2026-01-01--dense", "runs/model-", "runs/model.git", "runs/smøllm"])
def test_a_path_that_is_not_there_and_no_name_of_the_hub(name: str, tmp_path: Path) -> None:
    result = run("import", name, "--out", tmp_path / "ours")
    assert result.exit_code == 2
    assert f"{name}: no such file or directory" in " ".join(result.stderr.split())


def test_a_user_that_there_is_not(tmp_path: Path) -> None:
    result = run("import", "~nobody-of-this-name/model", "--out", tmp_path / "ours")
    assert result.exit_code == 2
    assert result.stderr == "Error: ~nobody-of-this-name/model: there is no home directory of that user\n"


def failures() -> list[Exception]:
    client = sys.modules[errors.HTTPError.__module__.partition(".")[0]]
    named = ("ProxyError", "ConnectError", "ReadError", "ReadTimeout", "RemoteProtocolError", "TooManyRedirects")
    return [getattr(client, name)(said) for name in named for said in ("no way\nand more", "", " \n")]


@pytest.mark.parametrize("failure", failures(), ids=repr)
def test_a_hub_that_does_not_answer(failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    result = run("import", "somebody/model", "--out", tmp_path / "ours")
    assert result.exit_code == 2
    reason = "no way" if str(failure).strip() else type(failure).__name__
    assert result.stderr == (
        f"Error: somebody/model: no such directory, and the Hugging Face hub does not give it: {reason}\n"
    )


def test_a_directory_that_exists_is_left_alone(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        result = run("import", llama, "--out", tmp_path / name)
        assert result.exit_code == 2
        assert result.stderr == (
            f"Error: {tmp_path / name} exists already, and nothing is overwritten; choose another with --out\n"
        )
    assert (tmp_path / "file").read_text() == "mine"
    result = run("import", tmp_path / "file", "--out", tmp_path / "new")
    assert "is a file, and no .gguf; give a directory with safetensors, or a .gguf file" in result.stderr


def test_a_failed_write_leaves_nothing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("mixerzoo.exchange.importing.copy_companions", full)
    result = run("import", llama, "--out", tmp_path / "deep" / "ours")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert not list(tmp_path.iterdir())
