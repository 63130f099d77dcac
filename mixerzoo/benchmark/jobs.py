"""What is timed of a model: the parts of a training step, and a prompt with what is written after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixerzoo.benchmark.models import Model
from mixerzoo.benchmark.plan import DECODED


class Job(NamedTuple):
    """Work that is done once a round.

    Attributes:
        parts: what is timed, in this order, each apart.
        before: makes ready, untimed.
        after: cleans up, untimed.
    """

    parts: Mapping[str, Callable[[], None]]
    before: Callable[[], None]
    after: Callable[[], None]


def training_job(model: Model, tokens: Tensor, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Job:
    """Forward and backward, then the optimiser's step.

    Args:
        model: with gradients.
        tokens: [B, T + 1], each predicts the next.
        optimizer: of all models of the benchmark; it passes over parameters that have no gradient.
        dtype: of the arithmetic, under autocast where the weights have another.
    """
    loss = model.compiled_loss()
    inputs, targets = tokens[:, :-1], tokens[:, 1:].contiguous()

    def train() -> None:
        with autocast(model, dtype):
            found = loss(inputs, targets)
        found.backward()

    def step() -> None:
        optimizer.step()

    def forget() -> None:
        # Of all models: a part that failed may have left some.
        optimizer.zero_grad(set_to_none=True)

    return Job({"train": train, "optimizer": step}, forget, forget)


def autocast(model: Model, dtype: torch.dtype) -> torch.autocast:
    """Autocast where weights have another dtype than the arithmetic shall have.

    Args:
        model: whose weights.
        dtype: of the arithmetic.
    """
    weights = next(model.module.parameters()).dtype
    return torch.autocast(model.device.type, dtype, enabled=weights != dtype)


def inference_job(model: Model, tokens: Tensor) -> Job:
    """A prompt with the logits of its last token, then `DECODED` tokens, one after the other.

    Args:
        model: without gradients.
        tokens: [B, T + DECODED].
    """
    length = tokens.size(1)
    prompt, rest = tokens[:, :-DECODED].contiguous(), tokens[:, -DECODED:]
    following = [rest[:, n : n + 1].contiguous() for n in range(DECODED)]
    read, write = model.reader(), model.writer()
    pasts: list[Any] = []

    @torch.no_grad()
    def before() -> None:
        if model.is_whole and pasts:
            pasts[0].reset()
        else:
            pasts[:] = [model.new_past(tokens.size(0), length)]

    @torch.no_grad()
    def prefill() -> None:
        read(prompt, pasts[0])

    @torch.no_grad()
    def decode() -> None:
        for token in following:
            if model.is_whole:
                torch.compiler.cudagraph_mark_step_begin()
            write(token, pasts[0])

    def after() -> None:
        if not model.is_whole:
            pasts.clear()

    return Job({"prefill": prefill, "decode": decode}, before, after)
