"""Which decoders an attention backend computes as asked; others are refused when they are assembled, or before."""

from __future__ import annotations

from mixerzoo.errors import BackendError
from mixerzoo.mixer import Plan
from mixerzoo.model.config import ModelConfig

_REMEDY = "set model.attention_backend to sdpa"


def unfit(config: ModelConfig) -> str | None:
    """Why the backend of a configuration cannot compute its attention, whatever the mixer; None where it can.

    Args:
        config: sizes and conventions.
    """
    backend = config.attention_backend
    if config.attention == "mla" and backend in ("flash", "xformers"):
        return (
            f"model.attention_backend {backend} takes keys and values of one width, and with model.attention mla "
            f"theirs differ; {_REMEDY} (or flex)"
        )
    # With an empty list no layer has a window.
    if config.sliding_window is not None and config.sliding_layers != () and backend == "flash":
        return (
            f"model.attention_backend flash has no windows, and model.sliding_window asks for one; {_REMEDY} (or flex)"
        )
    return None


def check_fit(config: ModelConfig, plan: Plan, mixer: str) -> None:
    """Refuse a backend that would not compute all attention of a decoder.

    Args:
        config: sizes and conventions.
        plan: of the decoder, its windows those of the configuration too.
        mixer: its name.

    Raises:
        BackendError: says why and what to choose instead.
    """
    backend = config.attention_backend
    reason = unfit(config)
    if reason is not None:
        raise BackendError(reason)
    if backend in ("sdpa", "eager"):
        return
    if backend == "flash" and any(plan.window(step) is not None for step in range(len(plan.order))):
        raise BackendError(
            f"model.attention_backend flash has no windows, and mixer {mixer!r} gives them to layers; {_REMEDY} "
            "(or flex)"
        )
    if "depth_kv" in plan.hooks:
        raise BackendError(
            f"mixer {mixer!r} joins entries along depth to the softmax, which model.attention_backend {backend} cannot "
            f"take; {_REMEDY}"
        )
    if config.attention == "mla" and "value_weights" in plan.hooks:
        raise BackendError(
            f"mixer {mixer!r} sums latents of several layers by attention weights, which model.attention_backend "
            f"{backend} does not give; {_REMEDY}"
        )
