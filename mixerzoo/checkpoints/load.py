"""Loads decoders in the Hugging Face layout, and reads other projects' checkpoints.

A checkpoint is a directory with ``config.json`` and ``model.safetensors`` (or shards with
``model.safetensors.index.json``).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixerzoo.checkpoints.config_json import HF_KEYS, OWN_KEYS, check_sizes, read_own, validated_model
from mixerzoo.checkpoints.foreign_config import Foreign, Shapes, read_foreign
from mixerzoo.checkpoints.layout import CONFIG_FILE, WEIGHTS_FILE, listed, read_json, read_tensors
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.files import check_files
from mixerzoo.mixer import Mixer, MixerConfig
from mixerzoo.model import DTYPES, BackendName, Decoder, ModelConfig, check_backend, find_device, find_dtype

logger = logging.getLogger(__name__)

MIXER_PREFIX = "model.mixer."


def load_checkpoint(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    k_norm: Literal["pre_rope", "post_rope"] | None = None,
    *,
    attention_backend: BackendName = "sdpa",
    device: torch.device | str = "cpu",
    allow_non_finite: bool = False,
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
        allow_non_finite: read weights that are infinite or not a number too, to look at them. No figure of such a
            decoder means anything.

    Raises:
        CheckpointError: a file is missing or damaged, the configuration is not one that this decoder can
            compute, ``k_norm`` is given for one without key norms, tensors are left over, missing, of the wrong shape
            or not finite, the weights are larger than this machine's memory, or the mixer is not installed.
        BackendError: there is no such device, dtype or attention backend, or the latter cannot run there or would not
            compute all attention of this decoder.
    """
    directory = Path(path)
    wanted, where = None if dtype is None else find_dtype(dtype), find_device(device)
    check_backend(attention_backend, where)
    check_files(directory, (CONFIG_FILE, WEIGHTS_FILE))
    raw = read_json(directory / CONFIG_FILE)
    update: dict[str, Any] = {"attention_backend": attention_backend}
    if k_norm is not None:
        update["k_norm"] = k_norm
    tensors = read_tensors(directory)
    return decoder_of_tensors(
        raw,
        tensors,
        directory / CONFIG_FILE,
        directory,
        update,
        dtype=wanted,
        device=where,
        allow_non_finite=allow_non_finite,
    )


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
    return read_foreign(raw, _shapes(read_tensors(directory)), directory / CONFIG_FILE)[:3]


def decoder_of_tensors(
    raw: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    place: Path,
    update: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    allow_non_finite: bool = False,
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
        allow_non_finite: as in `load_checkpoint`.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    check_k_norm(update.get("k_norm"))
    _refuse_without_head(raw, tensors, place)
    description = _described(raw, _shapes(tensors), path)
    check_key_norms(description.config, update.get("k_norm"), place)
    config = _updated(description.config, update, path)
    _check_layers(config, tensors, place)
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
    _refuse_too_large(state, dtype, device, place)
    # Always a copy: the file is mapped, and its alignment is not that of memory, which shows in the last bits.
    stored, state = (
        state,
        {
            name: t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype, copy=True)
            for name, t in state.items()
        },
    )
    if not allow_non_finite:
        _refuse_not_finite(state, stored, description.names, place)
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


def check_key_norms(config: ModelConfig, k_norm: str | None, place: Path) -> None:
    """Refuse an order of key norm and RoPE where there are no key norms.

    Args:
        config: of the checkpoint.
        k_norm: as asked for; None: not at all.
        place: what errors call it.

    Raises:
        CheckpointError: it has none.
    """
    if k_norm is not None and not config.has_key_norms:
        raise CheckpointError(f"{place}: it has no q/k norms, so k_norm {k_norm!r} has no meaning; leave it out")


def _updated(config: ModelConfig, update: Mapping[str, Any], path: Path) -> ModelConfig:
    """A configuration with other fields, which must go with the rest."""
    fields = {name: getattr(config, name) for name in ModelConfig.model_fields}
    return validated_model({**fields, **update}, path, HF_KEYS | OWN_KEYS)


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
        lines.append(f"tensors that nothing reads: {listed(sorted(left_over))}")
    if missing == ["lm_head.weight"]:
        lines.append("it has no head (lm_head.weight); tie_word_embeddings must be true if the embedding is its weight")
    elif missing:
        lines.append(f"tensors that are missing: {listed(missing)}")
    if lines:
        raise CheckpointError("\n".join(f"{directory}: {line}" for line in lines))
    return state


def _check_layers(config: ModelConfig, tensors: Mapping[str, Tensor], place: Path) -> None:
    """Refuse a number of layers that the weights do not have, before that many are built.

    Of the tensors that each layer has, one says it: `_match_names` checks them all.
    """
    wanted = (config.hidden_size, config.intermediate_size)
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        if name not in tensors:
            raise CheckpointError(f"{place}: tensors that are missing: {name}")
        shape = tuple(tensors[name].shape)
        if shape != wanted:
            raise CheckpointError(f"{place}: {name} has shape {shape}; the configuration calls for {wanted}")


def _refuse_too_large(state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, place: Path) -> None:
    """Refuse weights for which this machine has no memory: a file with holes says any size."""
    if device.type != "cpu":
        return
    size = sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize for tensor in state.values()
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        name = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{place}: its weights take {size / 2**30:,.1f} GiB as {name}, and this machine has {memory / 2**30:,.1f} "
            "GiB of memory"
        )


def _refuse_not_finite(
    state: Mapping[str, Tensor], stored: Mapping[str, Tensor], names: Mapping[str, str], place: Path
) -> None:
    """Refuse weights that are infinite or not a number, or became so in their new dtype.

    Args:
        state: as they are to be used, by our names.
        stored: the same as they were read.
        names: as in `Foreign`.
        place: what errors call them.
    """
    for name, tensor in state.items():
        if is_finite(tensor):
            continue
        shown = next((theirs for theirs, inner in names.items() if MIXER_PREFIX + inner == name), name)
        if is_finite(stored[name]):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(f"{place}: {shown} is beyond the range of {dtype}; choose another dtype")
        raise CheckpointError(
            f"{place}: {shown} has values that are not finite: nothing can be made of them "
            "(load_checkpoint(…, allow_non_finite=True) reads them all the same)"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite; it takes no memory of the tensor's size.

    Args:
        tensor: of any shape and dtype.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    lowest, highest = tensor.aminmax()  # which NaN comes through
    return bool(lowest.isfinite() & highest.isfinite())


def _check_dtype(name: str, stored: Tensor, wanted: Tensor, directory: Path) -> None:
    """Refuse what this decoder cannot compute in."""
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
