"""The decoder's own account of its operations."""

from __future__ import annotations

from torch import nn

from mixerzoo.model.decoder import Decoder


def flops_per_token(decoder: Decoder, sequence_length: int) -> int:
    """Floating-point operations of one forward, averaged over the tokens of a sequence.

    2 · (weights of all projections that run: of a layer once per step, of keys and values only where the
    step owns them, of the head, not of the embedding) + Σ over steps of 2·H·(d + value width)·(average context)
    + ``mixer.flops_per_token()``. Without a window the average context is (T + 1) / 2.

    Args:
        decoder: the model.
        sequence_length: T.
    """
    plan, shape = decoder.plan, decoder.shape
    weights = decoder.lm_head.weight.numel()
    context_sum = 0
    layers = [_projections(layer) for layer in decoder.model.layers]
    for step, number in enumerate(plan.order):
        owns_k, owns_v = plan.owns_k(step), plan.owns_v(step)
        running = {"k_proj": owns_k, "v_proj": owns_v, "kv_a_proj_with_mqa": owns_k}
        weights += sum(size for name, size in layers[number] if running.get(name, True))
        seen = min(plan.window(step) or sequence_length, sequence_length)
        context_sum += seen * (seen + 1) // 2 + (sequence_length - seen) * seen
    attention = 2 * shape.num_heads * (shape.head_dim + shape.v_head_dim) * context_sum
    return 2 * weights + round(attention / sequence_length) + decoder.mixer.flops_per_token()


def _projections(layer: nn.Module) -> list[tuple[str, int]]:
    """The last part of the name of each projection of a layer, and how many weights it has."""
    return [
        (name.rpartition(".")[2], part.weight.numel())
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    ]
