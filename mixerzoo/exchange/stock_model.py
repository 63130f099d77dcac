"""The model of transformers that computes what a decoder of ours computes, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

import torch

from mixerzoo.errors import CheckpointError
from mixerzoo.exchange.exporting import Format, obstacles, stock_config
from mixerzoo.model import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Our name of an attention backend → theirs.
_ATTENTION: Mapping[str, str] = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention"}


def stock_format(decoder: Decoder) -> Format:
    """The model type of transformers that a decoder is one of.

    Args:
        decoder: with the mixer ``residual``, on any device.

    Raises:
        CheckpointError: it is none (says why), or transformers has not its attention backend.
    """
    backend = decoder.config.attention_backend
    if backend not in _ATTENTION:
        raise CheckpointError(f"transformers has no attention backend {backend!r}; choose of {', '.join(_ATTENTION)}")
    formats: tuple[Format, ...] = get_args(Format)
    why = {format: obstacles(decoder, format) for format in ("qwen3", *formats)}
    for format, reasons in why.items():
        if not reasons:
            return format
    fewest = min(why.values(), key=len)
    raise CheckpointError(f"transformers has no model of this kind: {'; '.join(fewest)}")


def stock_model(decoder: Decoder) -> PreTrainedModel:
    """The model of transformers that a decoder is one of. Its parameters are the decoder's own, not copies.

    Args:
        decoder: with the mixer ``residual``.

    Raises:
        CheckpointError: as `stock_format`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    format = stock_format(decoder)
    weight = decoder.lm_head.weight
    raw = stock_config(decoder, format)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    # Their initial weights are drawn for nothing, and nobody else's numbers shall change for it.
    forked = [weight.device] if weight.is_cuda else []
    with torch.random.fork_rng(forked), weight.device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # transformers gives it no types
            config, dtype=weight.dtype, attn_implementation=_ATTENTION[decoder.config.attention_backend]
        )
    model.load_state_dict(dict(decoder.named_parameters(remove_duplicate=False)), assign=True)
    return model
