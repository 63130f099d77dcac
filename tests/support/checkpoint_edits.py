"""Edits of a saved checkpoint, and what loading it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixerzoo import load_checkpoint
from mixerzoo.errors import CheckpointError


def rewrite_config(directory: Path, **changes: Any) -> None:
    """Replace keys of config.json; None removes one."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def rewrite_tensors(directory: Path, **changes: Tensor | None) -> None:
    """Replace tensors of model.safetensors; None removes one."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def refusal(directory: Path, **arguments: Any) -> str:
    """The message of the CheckpointError that loading raises; it always names the place."""
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(directory, **arguments)
    assert str(directory) in str(failure.value)
    return str(failure.value)
