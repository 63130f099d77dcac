"""Counts the floating-point operations of a mixer's own calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixerzoo.mixer import DepthEntries, Mixer
from mixerzoo.ops import forms
from mixerzoo.testing.observe import Method, tensors_in, wrapped

#: Views, copies and bookkeeping: no arithmetic.
_FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "expand",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "unbind",
        "stack",
        "cat",
        "clone",
        "copy_",
        "_to_copy",
        "to",
        "detach",
        "alias",
        "as_strided",
        "contiguous",
        "unflatten",
        "flatten",
        "index",
        "index_select",
        "gather",
        "take",
        "embedding",
        "masked_select",
        "where",
        "masked_fill",
        "masked_fill_",
        "tril",
        "triu",
        "flip",
        "roll",
        "repeat",
        "constant_pad_nd",
        "select_scatter",
        "slice_scatter",
        "diagonal_scatter",
        "unfold",
        "diagonal",
        "fill",
        "fill_",
        "zero_",
        "empty",
        "empty_like",
        "zeros",
        "zeros_like",
        "ones",
        "ones_like",
        "full",
        "full_like",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "arange",
        "scalar_tensor",
        "lift_fresh",
    ]
)

#: Free, too, unless they are asked to add to what is there.
_PUT = frozenset(["scatter", "scatter_", "index_put", "index_put_"])


class FlopCounter(TorchDispatchMode):
    """Counts the arithmetic that runs inside it.

    Attributes:
        flops: so far; a multiplication and an addition are one each.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = tensors_in((*args, kwargs or {}))
        if _is_free(name, args, kwargs or {}) or not any(t.is_floating_point() for t in inputs):
            return result
        outputs = tensors_in(result)
        if name in ("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"):
            left = inputs[1] if name.startswith(("add", "badd")) else inputs[0]
            self.flops += 2 * outputs[0].numel() * left.size(-1)
        elif name.endswith("convolution"):
            self.flops += 2 * outputs[0].numel() * inputs[1][0].numel()
        elif name.startswith("_scaled_dot_product"):
            # Scores and weighted values; queries, keys and values are the first three.
            q, k, v = inputs[:3]
            self.flops += 2 * q[..., 0].numel() * k.size(-2) * (q.size(-1) + v.size(-1))
        elif name in ("addcmul", "addcmul_", "lerp"):
            self.flops += 2 * outputs[0].numel()
        else:
            self.flops += max(t.numel() for t in (*inputs, *outputs))
        return result


def _is_free(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation with these arguments does no arithmetic."""
    accumulates = any(value is True for value in (*args, *kwargs.values()))
    return name in _FREE or (name in _PUT and not accumulates and "reduce" not in kwargs)


@contextmanager
def counted_flops(mixer: Mixer) -> Iterator[FlopCounter]:
    """Count the arithmetic inside a mixer's calls, and that of the softmax with the entries that it adds.

    Args:
        mixer: whose calls are counted while the context lasts.
    """
    counter = FlopCounter()

    def wrap(name: str, method: Method) -> Method:
        def call(*arguments: Any) -> Any:
            with counter, torch.no_grad():
                result = method(*arguments)
            if isinstance(result, DepthEntries):
                # A score and a weighted value for each query head and entry.
                counter.flops += 4 * arguments[1].q.numel() * len(result.each()[0])
            return result

        return call

    # A node of an operation would count as one operation an element.
    with wrapped(mixer, wrap), forms.forced("naive"):
        yield counter
