"""What each precision of a recipe means in dtypes."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bf16", "bf16_weights", "fp16", "float8"]


def weights_dtype(precision: Precision) -> torch.dtype:
    """The dtype in which weights are kept, and so are their gradients."""
    return torch.bfloat16 if precision == "bf16_weights" else torch.float32


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype of autocast; None: there is none."""
    return {"bf16": torch.bfloat16, "float8": torch.bfloat16, "fp16": torch.float16}.get(precision)


def compute_dtype(precision: Precision) -> torch.dtype:
    """The dtype of most activations."""
    return autocast_dtype(precision) or weights_dtype(precision)
