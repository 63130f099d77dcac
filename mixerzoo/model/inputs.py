"""What a decoder can be called with; anything else is refused in words."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.errors import InputError
from mixerzoo.model.loss import IGNORED

_INTEGERS = (torch.int64, torch.int32)


def check_inputs(
    tokens: Tensor, vocab_size: int, *, cached: bool, left_padding: Tensor | None, documents: Tensor | None
) -> None:
    """Refuse what would fail far away, or worse, would not fail.

    Numbers are looked at on the CPU only: elsewhere that would hold up every step until the device has come to it. Of
    tokens out of range a device says so itself. Nothing is checked in a compiled graph.

    Args:
        tokens: ids [B, T].
        vocab_size: V.
        cached: whether there may be a past.
        left_padding: int [B], or None.
        documents: int [B, T], or None.

    Raises:
        InputError: says what is wrong and what would be right.
    """
    if torch.compiler.is_compiling():
        return
    if tokens.ndim != 2 or not tokens.numel() or tokens.dtype not in _INTEGERS:
        raise InputError(
            f"tokens are {tokens.dtype} of shape {list(tokens.shape)}; they must be int64 [batch, tokens], "
            "at least one of each"
        )
    for name, tensor, shape in (
        ("left_padding", left_padding, tokens.shape[:1]),
        ("documents", documents, tokens.shape),
    ):
        if tensor is not None and (tensor.shape != shape or tensor.dtype not in _INTEGERS):
            raise InputError(
                f"{name} is {tensor.dtype} of shape {list(tensor.shape)}; for tokens {list(tokens.shape)} it must "
                f"be int64 {list(shape)}"
            )
    if _is_near(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size):
        raise InputError(f"tokens range from {tokens.min()} to {tokens.max()}; the vocabulary has {vocab_size}")
    if left_padding is not None and _is_near(left_padding):
        longest = int(left_padding.max())
        if int(left_padding.min()) < 0 or (not cached and longest >= tokens.size(1)):
            raise InputError(
                f"left_padding is {left_padding.tolist()}; in rows of {tokens.size(1)} tokens it must be from 0 to "
                f"{tokens.size(1) - 1}, so that each has a token of its own"
            )
    if documents is not None and _is_near(documents) and bool((documents[:, 1:] < documents[:, :-1]).any()):
        raise InputError("documents descend within a row; number the documents of a row in ascending order")


def check_targets(targets: Tensor, tokens: Tensor, vocab_size: int) -> None:
    """Refuse targets that are not one a token, and on the CPU those out of range.

    Args:
        targets: ids [B, T], or −100.
        tokens: [B, T].
        vocab_size: V.

    Raises:
        InputError: says what is wrong and what would be right.
    """
    if torch.compiler.is_compiling():
        return
    if targets.shape != tokens.shape or targets.dtype != torch.int64:
        raise InputError(
            f"targets are {targets.dtype} of shape {list(targets.shape)}; for tokens {list(tokens.shape)} they must be "
            f"int64 {list(tokens.shape)}"
        )
    if _is_near(targets):
        counted = targets[targets != IGNORED]
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= vocab_size):
            raise InputError(f"targets range from {counted.min()} to {counted.max()}; the vocabulary has {vocab_size}")


def _is_near(tensor: Tensor) -> bool:
    """Whether a look at the numbers costs nothing but the look."""
    return tensor.device.type == "cpu"
