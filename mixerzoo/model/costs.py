"""The decoder's own account of its operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from mixerzoo.model.decoder import Decoder


def flops_per_token(decoder: Decoder, sequence_length: int, documents: Sequence[int] | None = None) -> int:
    """Floating-point operations of one forward, averaged over the tokens of a sequence.

    2 · (weights of all projections that run: of a layer once per step, of keys and values only where the
    step owns them, of the head, not of the embedding) + Σ over steps of 2·H·(d + value width)·(average context)
    + ``mixer.flops_per_token()``. Without a window the average context is (T + 1) / 2.

    Args:
        decoder: the model.
        sequence_length: T.
        documents: tokens of each document, where those of a sequence are apart; attention is then averaged over these,
            as if nothing that the mask hides were computed.
    """
    weights = decoder.lm_head.weight.numel() + sum(_weights(decoder))
    lengths = Counter([sequence_length] if documents is None else documents)
    steps = range(len(decoder.plan.order))
    attention = sum(
        count * sum(_attention(decoder, step, range(length)) for step in steps) for length, count in lengths.items()
    )
    tokens = sum(length * count for length, count in lengths.items())
    return 2 * weights + round(attention / tokens) + decoder.mixer.flops_per_token()


def forward_flops(decoder: Decoder, tokens: int, *, past: int = 0, last_only: bool = False) -> int:
    """Floating-point operations of one forward of a row, all of its tokens together.

    Args:
        decoder: the model.
        tokens: new ones.
        past: those before, in the cache.
        last_only: as in `Decoder.forward`: the head, and the steps that store nothing any more, take the last token
            alone. What a mixer does in those steps is counted for every token.
    """
    plan = decoder.plan
    total = 2 * decoder.lm_head.weight.numel() * (1 if last_only else tokens)
    for step, weights in enumerate(_weights(decoder)):
        narrow = last_only and step > plan.last_owner
        new = range(past + tokens - 1 if narrow else past, past + tokens)
        total += 2 * weights * len(new) + _attention(decoder, step, new)
    return total + tokens * decoder.mixer.flops_per_token()


def _weights(decoder: Decoder) -> Iterator[int]:
    """Of the projections that each step runs."""
    plan = decoder.plan
    layers = [_projections(layer) for layer in decoder.model.layers]
    for step, number in enumerate(plan.order):
        owns_k, owns_v = plan.owns_k(step), plan.owns_v(step)
        running = {"k_proj": owns_k, "v_proj": owns_v, "kv_a_proj_with_mqa": owns_k}
        yield sum(size for name, size in layers[number] if running.get(name, True))


def _attention(decoder: Decoder, step: int, positions: range) -> int:
    """Of scores and sums of the queries at some positions."""
    shape, window = decoder.shape, decoder.plan.window(step)
    full = positions if window is None else range(positions.start, min(positions.stop, max(positions.start, window)))
    seen = len(full) * (full.start + full.stop + 1) // 2
    if window is not None:
        seen += (len(positions) - len(full)) * window
    return 2 * shape.num_heads * (shape.head_dim + shape.v_head_dim) * seen


def _projections(layer: nn.Module) -> list[tuple[str, int]]:
    """The last part of the name of each projection of a layer, and how many weights it has."""
    return [
        (name.rpartition(".")[2], part.weight.numel())
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    ]
