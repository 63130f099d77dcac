"""Whether memory has run out."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of a GPU or of the machine.

    Args:
        error: any.
    """
    # On the CPU torch has no error of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
