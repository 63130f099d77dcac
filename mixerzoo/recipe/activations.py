"""What a forward keeps for its backward, by an estimate from the shapes."""

from __future__ import annotations

from mixerzoo.mixer import DecoderShape
from mixerzoo.model import Recompute, recomputes


def kept_elements(shape: DecoderShape, intermediate_size: int, mode: Recompute) -> int:
    """Elements that the steps keep for each token, what is computed again at a time included.

    Args:
        shape: of the decoder.
        intermediate_size: of its MLPs.
        mode: what is computed again.
    """
    hidden, heads = shape.hidden_size, shape.num_heads * (shape.head_dim + shape.v_head_dim)
    kv_heads = shape.num_kv_heads * (shape.head_dim + shape.v_head_dim)
    # Two norms and two residual additions; queries, keys, values and attention's output; gate, up and their product.
    step = 6 * hidden + 2 * heads + 2 * kv_heads + 4 * intermediate_size
    products = heads + kv_heads + 2 * hidden + 2 * intermediate_size if mode == "selective" else 0
    again = sum(recomputes(mode, number) for number in range(shape.num_steps))
    return step * (shape.num_steps - again) + (hidden + products) * again + (step if again else 0)
