"""Saves decoders in the Hugging Face layout.

A checkpoint is a directory with ``config.json`` and ``model.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mixerzoo.checkpoints.config_json import SHIM_FILE, own_config
from mixerzoo.checkpoints.layout import CONFIG_FILE, WEIGHTS_FILE, remove_shards
from mixerzoo.errors import CheckpointError
from mixerzoo.files import MANIFEST_FILE, replacing, write_text
from mixerzoo.model import Decoder

_SHIM = '''"""Loads with transformers and trust_remote_code=True; the code itself is in the package mixerzoo."""

from mixerzoo.hf import MixerZooConfig, MixerZooForCausalLM, MixerZooModel

__all__ = ["MixerZooConfig", "MixerZooForCausalLM", "MixerZooModel"]
'''


def save_checkpoint(decoder: Decoder, directory: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write ``config.json``, ``model.safetensors`` and the shim for transformers.

    Each file appears whole or not at all.

    Args:
        decoder: what to save, in its own dtype.
        directory: created if missing; existing files of these names are replaced, and weights in shards removed.
        weights: by name; default: the decoder's own, as it has them in one piece.

    Raises:
        CheckpointError: the weights cannot be written.
        OSError: the directory, or another file, cannot be.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(decoder, directory, weights)
    save_configuration(decoder, directory)


def save_configuration(decoder: Decoder, directory: Path) -> None:
    """Write ``config.json`` and the shim, and no weights.

    Args:
        decoder: of what kind they are.
        directory: must exist.

    Raises:
        OSError: a file cannot be written.
    """
    write_shim(directory)
    write_text(directory / CONFIG_FILE, json.dumps(config_dict(decoder), indent=2) + "\n")


def save_weights(decoder: Decoder, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write ``model.safetensors``, whole or not at all, in place of all weights that are there.

    Args:
        decoder: its weights, in their own dtype; a tied head is left out.
        directory: must exist.
        weights: as in `save_checkpoint`.

    Raises:
        CheckpointError: they cannot be written.
        OSError: the directory cannot be.
    """
    weights = decoder.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if decoder.config.tie_embeddings:
        del tensors["lm_head.weight"]
    path = directory / WEIGHTS_FILE
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(f"{path}: cannot be written: {error}") from error
    (directory / MANIFEST_FILE).unlink(missing_ok=True)  # of other weights
    remove_shards(directory)


def write_shim(directory: Path) -> None:
    """Write the file that ``auto_map`` in ``config.json`` names."""
    write_text(directory / SHIM_FILE, _SHIM)


def config_dict(decoder: Decoder) -> dict[str, Any]:
    """The content of ``config.json``."""
    mixer = decoder.mixer
    return {
        **own_config(decoder.config, mixer.name, mixer.config),
        "torch_dtype": str(decoder.lm_head.weight.dtype).removeprefix("torch."),
    }
