"""Reads GGUF files through transformers, which dequantises them; what it would ignore is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixerzoo.errors import CheckpointError
from mixerzoo.process import errors_alone

#: Metadata of a model that transformers reads, or that says what the shapes of the tensors say too.
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "rope.dimension_count",
    "rope.freq_base",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
}
_TENSOR = re.compile(
    r"(token_embd|output_norm|output)\.weight"
    r"|blk\.\d+\.((attn_norm|ffn_norm|attn_q_norm|attn_k_norm)\.weight"
    r"|(attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)\.(weight|bias))"
)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration in the words of transformers, and float32 weights by their Hugging Face names.

    Args:
        path: of the file.

    Raises:
        CheckpointError: the package gguf is missing, the file is damaged or of an unknown architecture, or it holds
            something that transformers would leave out.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(f'{path}: reading GGUF needs a package: run `pip install "mixerzoo[gguf]"`') from error
    from transformers import AutoModelForCausalLM

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path}: not a GGUF file")
    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged or cut short: {error}") from error
    _refuse_what_is_not_read(reader, path)
    try:
        with errors_alone("transformers"), _no_bars():
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{path}: transformers cannot read it: {error}") from error
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if len(tensors) != len(reader.tensors):
        raise CheckpointError(
            f"{path}: it holds {len(reader.tensors)} tensors, of which transformers reads {len(tensors)}"
        )
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # they are not any more
    return config, {name: tensor.float() for name, tensor in tensors.items()}


@contextmanager
def _no_bars() -> Iterator[None]:
    """A block in which transformers draws no bars of progress, which it does of each tensor that it reads."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers gives it no types


def save_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer that a GGUF file holds, if any, as transformers writes one.

    Args:
        path: of the file.
        directory: where to.

    Raises:
        CheckpointError: transformers cannot read it.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" not in GGUFReader(path).fields:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: transformers cannot read its tokenizer: {error}") from error
    tokenizer.save_pretrained(directory)


def _refuse_what_is_not_read(reader: Any, path: Path) -> None:
    if "general.architecture" not in reader.fields:
        raise CheckpointError(f"{path}: it names no architecture (general.architecture), so it holds no model")
    architecture = reader.fields["general.architecture"].contents()
    prefix = f"{architecture}."
    scaling = reader.fields.get(f"{prefix}rope.scaling.type")
    unscaled = scaling is None or scaling.contents() == "none"
    factor = reader.fields.get(f"{prefix}rope.scaling.factor")
    if scaling is None and factor is not None and factor.contents() != 1:
        raise CheckpointError(
            f"{path}: its key '{prefix}rope.scaling.factor' is {factor.contents()}, and none says of which type the "
            "scaling is; import the model's safetensors instead"
        )
    for key in reader.fields:
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name not in _READ and not (unscaled and name.startswith("rope.scaling.")):
            raise CheckpointError(f"{path}: its key {key!r} is not read; import the model's safetensors instead")
    for tensor in reader.tensors:
        if not _TENSOR.fullmatch(tensor.name):
            raise CheckpointError(f"{path}: its tensor {tensor.name!r} is not read; import the safetensors instead")
