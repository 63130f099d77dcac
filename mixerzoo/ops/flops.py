"""What PyTorch's counter of FLOPs is told of nodes that multiply matrices, for it cannot look into them.

Formulas are given shapes in place of tensors. As for PyTorch's own nodes, products alone are counted, attention without
regard to its mask, and in the backward of attention the scores once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

#: Of a tensor.
Shape: TypeAlias = Sequence[int]


def of_products(x: Shape, matrices: Iterable[Shape]) -> int:
    """FLOPs of x [..., D] with matrices [rows, D]."""
    return sum(2 * math.prod(x[:-1]) * math.prod(matrix) for matrix in matrices)
