"""PyTorch's flash attention and nothing else: where another kernel would run, this is an error."""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.errors import BackendError
from mixerzoo.ops.sequence_attention import OLDEST, WIDEST

#: Implementations that PyTorch can put in place of its own, the newest first, and the packages that have them.
_NEWER = {"FA4": "flash_attn.cute.interface", "FA3": "flash_attn_interface"}
DTYPES = (torch.bfloat16, torch.float16)


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of the last T of S tokens.

    Args:
        q: queries [B, H, T, d].
        k: keys [B, G, S, d].
        v: values [B, G, S, d].
        scale: factor of the scores.

    Raises:
        BackendError: of other tensors than there is a kernel for.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right

    kind, short = q.device.type, attended_dtype(q)
    if kind != "cuda" or short not in DTYPES:
        raise BackendError(
            f"the attention backend 'flash' computes in bfloat16 or float16 on CUDA, not in {short} on {kind}; "
            "set model.attention_backend to 'sdpa'"
        )
    if not torch.compiler.is_compiling():
        # A compiler cannot import; `check_backend` does it.
        activate()
    num_new, length, grouped = q.size(2), k.size(2), q.size(1) != k.size(1)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if num_new in (1, length):
            return F.scaled_dot_product_attention(q, k, v, is_causal=num_new > 1, scale=scale, enable_gqa=grouped)
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1).to(short) for x in (k, v))
        bias = causal_lower_right(num_new, length)
        return F.scaled_dot_product_attention(q.to(short), k, v, attn_mask=bias, scale=scale)


def attended_dtype(q: Tensor) -> torch.dtype:
    """In which PyTorch attends with queries ``q``: under autocast, in its dtype."""
    kind = q.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else q.dtype


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch's flash attention takes these queries, keys and values [B, heads, tokens, d]."""
    alike = q.size(-1) == k.size(-1) == v.size(-1) and q.size(-1) <= WIDEST
    if not (q.is_cuda and attended_dtype(q) in DTYPES and alike):
        return False
    # A compiler cannot ask the device.
    return torch.compiler.is_compiling() or torch.cuda.get_device_capability(q.device) >= OLDEST


@functools.cache
def activate() -> str | None:
    """Have PyTorch use the newest implementation that is installed, if it can change it and nobody did.

    Returns:
        Its name; None for PyTorch's own.

    Raises:
        BackendError: what is installed cannot be used; says why.
    """
    from torch.nn import attention

    if not hasattr(attention, "activate_flash_attention_impl"):
        return None
    current: str | None = attention.current_flash_attention_impl()
    if current is not None:
        return current
    for name, module in _NEWER.items():
        if name in attention.list_flash_attention_impls() and _is_installed(module):
            try:
                attention.activate_flash_attention_impl(name)
            except (ImportError, AttributeError, RuntimeError) as error:
                raise BackendError(
                    f"the attention backend 'flash' cannot use {name}, whose package {module} is installed: {error}; "
                    "mend or uninstall that package, or set model.attention_backend to 'sdpa'"
                ) from error
            return name
    return None


def _is_installed(module: str) -> bool:
    parts = module.split(".")
    names = (".".join(parts[: number + 1]) for number in range(len(parts)))
    # Level by level: a search within a package that is not there is an error.
    return all(importlib.util.find_spec(name) is not None for name in names)
