"""Saves and loads decoders in the Hugging Face layout, and reads other projects' checkpoints.

A checkpoint is a directory with ``config.json`` and ``model.safetensors`` (or shards with
``model.safetensors.index.json``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixerzoo.attention import BackendName, check_backend
from mixerzoo.config_json import SHIM_FILE, check_sizes, describe, read_own
from mixerzoo.decoder import Decoder
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.foreign import Foreign, Shapes, read_foreign
from mixerzoo.manifest import MANIFEST_FILE, check_files
from mixerzoo.mixer import Mixer, MixerConfig
from mixerzoo.model_config import ModelConfig
from mixerzoo.placement import DTYPES, find_device, find_dtype

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MIXER_PREFIX = "model.mixer."

_SHIM = '''"""Loads with transformers and trust_remote_code=True; the code itself is in the package mixerzoo."""

from mixerzoo.hf import MixerZooConfig, MixerZooForCausalLM, MixerZooModel

__all__ = ["MixerZooConfig", "MixerZooForCausalLM", "MixerZooModel"]
'''


def save_checkpoint(decoder: Decoder, directory: str | Path) -> None:
    """Write ``config.json``, ``model.safetensors`` and the shim for transformers.

    Each file appears whole or not at all.

    Args:
        decoder: what to save, in its own dtype.
        directory: created if missing; existing files of these names are replaced, and weights in shards removed.

    Raises:
        CheckpointError: the weights cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(decoder, directory)
    write_shim(directory)
    _write(directory / CONFIG_FILE, json.dumps(config_dict(decoder), indent=2) + "\n")


def save_weights(decoder: Decoder, directory: Path) -> None:
    """Write ``model.safetensors``, whole or not at all, in place of all weights that are there.

    Args:
        decoder: its weights, in their own dtype; a tied head is left out.
        directory: must exist.

    Raises:
        CheckpointError: they cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in decoder.state_dict().items()}
    if decoder.config.tie_embeddings:
        del tensors["lm_head.weight"]
    partial = directory / f".{WEIGHTS_FILE}.partial"
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS_FILE}: cannot be written: {error}") from error
    partial.chmod(0o644)  # safetensors makes it private
    os.replace(partial, directory / WEIGHTS_FILE)
    (directory / MANIFEST_FILE).unlink(missing_ok=True)  # of other weights
    _remove_shards(directory)


def _remove_shards(directory: Path) -> None:
    """Leave no older weights beside ``model.safetensors``."""
    index = directory / INDEX_FILE
    if not index.exists():
        return
    try:
        shards = set(_shard_names(index)) - {WEIGHTS_FILE}
    except CheckpointError:
        shards = set()
    index.unlink()
    for name in shards:
        (directory / name).unlink(missing_ok=True)


def write_shim(directory: Path) -> None:
    """Write the file that ``auto_map`` in ``config.json`` names."""
    _write(directory / SHIM_FILE, _SHIM)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def config_dict(decoder: Decoder) -> dict[str, Any]:
    """The content of ``config.json``."""
    mixer = decoder.mixer
    return {
        **describe(decoder.config, mixer.name, mixer.config),
        "torch_dtype": str(decoder.lm_head.weight.dtype).removeprefix("torch."),
    }


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    k_norm: Literal["pre_rope", "post_rope"] | None = None,
    *,
    attention_backend: BackendName = "sdpa",
    device: torch.device | str = "cpu",
) -> Decoder:
    """Read a checkpoint of ours, a stock Llama or Qwen3 one, or one of a method's reference implementation.

    Args:
        path: the directory.
        dtype: of the loaded weights, as ``torch.float64`` or ``"float64"``; default: as stored. Where they are stored
            in several, the one of those that ``config.json`` names, else the widest.
        k_norm: whether the key norm comes before or after RoPE. Default: what the checkpoint says; where
            its format has no key for it, ``pre_rope`` for Qwen3 and ``post_rope`` for the Depth-Attention
            release.
        attention_backend: its name.
        device: where the weights go.

    Raises:
        CheckpointError: a file is missing or damaged, the configuration is not one that this skeleton can
            compute, tensors are left over, missing or of the wrong shape, or the mixer is not installed.
        BackendError: there is no such device or dtype, or the attention backend cannot run there.
    """
    directory = Path(path)
    wanted, where = None if dtype is None else find_dtype(dtype), find_device(device)
    check_backend(attention_backend, where)
    check_files(directory, (CONFIG_FILE, WEIGHTS_FILE))
    raw = read_json(directory / CONFIG_FILE)
    update: dict[str, Any] = {"attention_backend": attention_backend}
    if k_norm is not None:
        update["k_norm"] = k_norm
    tensors = _read_tensors(directory)
    return assemble(raw, tensors, directory / CONFIG_FILE, directory, update, dtype=wanted, device=where)


def load_config(path: str | Path) -> tuple[ModelConfig, type[Mixer], MixerConfig]:
    """What a checkpoint says of its decoder: sizes, the mixer and its options; no weight is loaded.

    Args:
        path: the directory.

    Raises:
        CheckpointError: as `load_checkpoint`, but for what only the weights would show.
    """
    directory = Path(path)
    raw = read_json(directory / CONFIG_FILE)
    if raw.get("model_type") == "mixerzoo":
        return read_own(raw, directory / CONFIG_FILE)
    return read_foreign(raw, _shapes(_read_tensors(directory)), directory / CONFIG_FILE)[:3]


def assemble(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    place: Path,
    update: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
) -> Decoder:
    """The decoder of a configuration and its weights, which are copied.

    Args:
        raw: the content of a ``config.json``, ours or another project's.
        tensors: by the names of that project.
        path: what errors call the configuration.
        place: what errors call the weights.
        update: fields of `ModelConfig` in place of the configuration's own.
        dtype: of the weights; default: as in `load_checkpoint`.
        device: where they go.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    check_k_norm(update.get("k_norm"))
    _refuse_without_head(raw, tensors, place)
    description = _described(raw, _shapes(tensors), path)
    config = description.config.model_copy(update=dict(update))
    try:
        with torch.device("meta"):
            decoder = Decoder(config, description.mixer, description.options)
    except MixerError as error:
        raise CheckpointError(f"{place}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError) as error:
        # Sizes that are each allowed, and together beyond what a tensor can have.
        reason = str(error).splitlines()[0] if str(error) else "too large"
        raise CheckpointError(f"{path}: no decoder of these sizes can be built: {reason}") from error
    state = _match_names(decoder, tensors, description, place)
    dtype = dtype or _common_dtype(state, raw, place)
    # Always a copy: the file is mapped, and its alignment is not that of memory, which shows in the last bits.
    state = {
        name: t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype, copy=True)
        for name, t in state.items()
    }
    if config.tie_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    decoder.load_state_dict(state, assign=True)
    decoder.tie_weights()
    return decoder.requires_grad_(True)


def _described(raw: Mapping[str, Any], shapes: Shapes, path: Path) -> Foreign:
    if raw.get("model_type") != "mixerzoo":
        return read_foreign(raw, shapes, path)
    own = Foreign(*read_own(raw, path), {}, frozenset())
    check_sizes(own.config, shapes, path)
    return own


def _refuse_without_head(raw: Mapping[str, Any], tensors: Mapping[str, Tensor], place: Path) -> None:
    """Say so where the names are those of a model that was saved by itself, without its language-model head."""
    if "embed_tokens.weight" in tensors:
        named = raw.get("architectures")
        kind = f" ({', '.join(map(str, named))})" if isinstance(named, list) and named else ""
        raise CheckpointError(
            f"{place}: it has no head: these are the weights of a bare model{kind}, as AutoModel saves it; save the "
            "model of AutoModelForCausalLM"
        )


def _common_dtype(state: Mapping[str, Tensor], raw: Mapping[str, Any], place: Path) -> torch.dtype:
    """The one dtype that weights are brought to."""
    stored = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(stored) == 1:
        return stored.pop()
    names = {str(dtype).removeprefix("torch."): dtype for dtype in stored}
    named = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    chosen = names.get(named, functools.reduce(torch.promote_types, stored))
    found = " and ".join(sorted(names))
    logger.warning("%s: weights are stored as %s; all are read as %s", place, found, str(chosen).removeprefix("torch."))
    return chosen


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_k_norm(k_norm: str | None) -> None:
    """Refuse what is no order of key norm and RoPE.

    Args:
        k_norm: None stands for the checkpoint's own.

    Raises:
        CheckpointError: it is none.
    """
    if k_norm not in (None, "pre_rope", "post_rope"):
        raise CheckpointError(f"k_norm is {k_norm!r}; it must be 'pre_rope' or 'post_rope'")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file.

    Args:
        path: of the file.

    Raises:
        CheckpointError: the file or its directory is missing, or it is damaged.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent}: no such directory")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: not a checkpoint: it has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged: expected a JSON object")
    return content


def weights_fingerprint(path: str | Path) -> str:
    """SHA-256 of the files that hold a checkpoint's weights.

    Args:
        path: the directory.

    Raises:
        CheckpointError: a file is missing.
    """
    digest = hashlib.sha256()
    for file in _weight_files(Path(path)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    files = [single]
    if index.exists():
        shards = [directory / name for name in _shard_names(index)]
        if not single.exists():
            files = shards
        elif any(shard.exists() for shard in shards if shard != single):
            raise CheckpointError(
                f"{directory}: it has {WEIGHTS_FILE}, and shards with {INDEX_FILE}: which of the two is the model is "
                "not recorded; remove the older one"
            )
    for file in files:
        if file.is_dir():
            raise CheckpointError(f"{file}: is a directory; it must be a file of weights")
        if not file.exists():
            raise CheckpointError(f"{directory}: it has no {file.name}{_what_else(directory)}")
    return files


def _shard_names(index: Path) -> list[str]:
    """The files that an index names, each once."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: damaged: it has no weight_map of tensor names to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise CheckpointError(
                f"{index}: weight_map says that {tensor} is in {name!r}; it must be a file of the same directory"
            )
    return sorted(set(weight_map.values()))


def _what_else(directory: Path) -> str:
    """What lies where weights were expected."""
    others = sorted(path.name for path in directory.glob("*.safetensors") if not path.is_dir())
    if others:
        return f"; it has {_listed(others)}: rename what holds the whole model, or restore {INDEX_FILE} for shards"
    pickled = sorted(path.name for path in (*directory.glob("*.bin"), *directory.glob("*.pt*")))
    return f"; {_listed(pickled)}: pickled weights are not read, convert them" if pickled else ""


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file}: damaged or cut short: {error}") from error
    return tensors


def _match_names(
    decoder: Decoder, tensors: Mapping[str, Tensor], description: Foreign, directory: Path
) -> dict[str, Tensor]:
    wanted = decoder.state_dict()
    tied = decoder.config.tie_embeddings
    if tied:
        del wanted["lm_head.weight"]
    state: dict[str, Tensor] = {}
    left_over: list[str] = []
    for name, stored in tensors.items():
        if name in description.unused:
            continue
        inner = description.names.get(name)
        own = name if inner is None else MIXER_PREFIX + inner
        if tied and name == "lm_head.weight":
            if not torch.equal(stored, tensors.get("model.embed_tokens.weight", stored.new_empty(0))):
                raise CheckpointError(
                    f"{directory}: tie_word_embeddings is true, but lm_head.weight differs from the embedding"
                )
            continue
        if own not in wanted:
            left_over.append(name)
            continue
        _check_dtype(name, stored, wanted[own], directory)
        shape = tuple(wanted[own].shape)
        # Scalars of other projects are vectors of one here, because fully_shard takes no scalars.
        tensor = stored.reshape(1) if stored.ndim == 0 and shape == (1,) else stored
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{directory}: {name} has shape {tuple(tensor.shape)}; the configuration calls for {shape}"
            )
        state[own] = tensor
    missing = sorted(wanted.keys() - state.keys())
    lines = []
    if left_over:
        lines.append(f"tensors that nothing reads: {_listed(sorted(left_over))}")
    if missing == ["lm_head.weight"]:
        lines.append("it has no head (lm_head.weight); tie_word_embeddings must be true if the embedding is its weight")
    elif missing:
        lines.append(f"tensors that are missing: {_listed(missing)}")
    if lines:
        raise CheckpointError("\n".join(f"{directory}: {line}" for line in lines))
    return state


def _check_dtype(name: str, stored: Tensor, wanted: Tensor, directory: Path) -> None:
    """Refuse what this skeleton cannot compute in."""
    found = str(stored.dtype).removeprefix("torch.")
    if wanted.is_floating_point():
        if found not in DTYPES:
            raise CheckpointError(
                f"{directory}: {name} is stored as {found}; weights must be {', '.join(DTYPES)}: convert quantised "
                "ones with the tool that made them"
            )
    elif stored.dtype != wanted.dtype:
        expected = str(wanted.dtype).removeprefix("torch.")
        raise CheckpointError(f"{directory}: {name} is stored as {found}; it must be {expected}")


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
