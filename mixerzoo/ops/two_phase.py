"""A softmax over N sources in two phases: many queries read the finished sources at once, each then joins one more.

Exact: with the logarithm of its sum, a softmax over some sources is merged with the source that comes later. For
inference, where what is read waits in memory and nothing is kept for a backward. Letters in shapes as in
`source_softmax`; Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixerzoo.ops import forms


def reads_at_once(source: Tensor) -> bool:
    """Whether sources like this one [..., D] are worth two phases: large ones, for inference, not compiled.

    Small ones are read by the equation, so that their bits do not depend on whether gradients are wanted.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or forms.forced_form() == "naive":
        return False
    return source.numel() >= forms.SMALLEST


def source_reads(
    sources: Sequence[Tensor], scores: Sequence[Sequence[Tensor]]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """First phase: what each query reads of the sources, each of which is read once for all of them.

    Args:
        sources: N tensors [..., D].
        scores: of each source those of the Q queries [...], as `source_scores` gives them.

    Returns:
        Q softmax-weighted sums [..., D], and the logarithms of their softmax's sums [...].
    """
    together = torch.stack([torch.stack([*of_source], dim=-1) for of_source in scores], dim=-1)
    log_sums = together.logsumexp(-1)
    dtype = forms.common_dtype(sources)
    weights = (together - log_sums.unsqueeze(-1)).exp().to(dtype)
    with forms.no_autocast(sources[0]):
        values = weights @ torch.stack([x.to(dtype) for x in sources], dim=-2)
    return values.unbind(-2), log_sums.unbind(-1)


def join_source(value: Tensor, log_sum: Tensor, source: Tensor, score: Tensor) -> Tensor:
    """Second phase: what a query reads of the sources of the first phase and of one more.

    Args:
        value: [..., D], as `source_reads` gives it.
        log_sum: [...], likewise.
        source: [..., D].
        score: of it [...].

    Returns:
        [..., D], in the widest dtype of value and source.
    """
    dtype = forms.common_dtype([value, source])
    share = (score - log_sum).sigmoid().to(dtype).unsqueeze(-1)
    return torch.lerp(value.to(dtype), source.to(dtype), share)
