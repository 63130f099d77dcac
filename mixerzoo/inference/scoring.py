"""Exact validation: negative log-likelihood summed over tokens, never a mean of batch means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mixerzoo.data import TokenFile, documents_of
from mixerzoo.errors import DataError
from mixerzoo.model import Decoder, compute_device, drop_gathered, is_sharded

#: Called with the sequences scored so far and in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """What a decoder makes of a token stream.

    Attributes:
        nll: negative log-likelihood of all scored tokens, in nats.
        num_tokens: how many were scored.
        num_bytes: UTF-8 bytes of the text that they stand for, or None where only a part was scored.
    """

    nll: float
    num_tokens: int
    num_bytes: int | None

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); comparable between models of one tokenizer only."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text, comparable across tokenizers; None where only a part was scored."""
        return None if self.num_bytes is None else self.nll / math.log(2) / self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain keys, without those that are not known."""
        known = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
        }
        return {key: value for key, value in known.items() if value is not None}


@torch.inference_mode()
def score(
    decoder: Decoder,
    tokens: np.ndarray[Any, Any] | TokenFile,
    *,
    sequence_length: int,
    start_token: int,
    num_bytes: int | None = None,
    batch_size: int = 16,
    max_sequences: int | None = None,
    autocast: torch.dtype | None = None,
    document_mask: bool = False,
    progress: Progress | None = None,
) -> Score:
    """Score every token of a stream once, each from the tokens before it in its own window.

    Windows of ``sequence_length`` do not overlap; the first token of the stream is predicted from
    ``start_token``, and the last, shorter window is scored too. Under torch.distributed the windows are
    shared out and the sums added, so the result does not depend on the number of processes.

    Args:
        decoder: the model; its mode and gradients are left alone.
        tokens: ids [N], of any integer type.
        sequence_length: tokens of a window.
        start_token: stands before the stream: the end-of-text token.
        num_bytes: UTF-8 bytes of the text.
        batch_size: windows per forward.
        max_sequences: score only this many windows, spread evenly over the stream.
        autocast: run the forward in autocast of this dtype.
        document_mask: score each token from those of its own document in the window alone, which begins with
            ``start_token``.
        progress: called after each batch.

    Raises:
        DataError: there are no tokens.
    """
    if len(tokens) == 0:
        raise DataError("there are no tokens to score")
    num_windows = -(-len(tokens) // sequence_length)
    chosen = _spread(num_windows, max_sequences)
    num_bytes = num_bytes if len(chosen) == num_windows else None
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    each = [_batches(chosen[r::world], len(tokens), sequence_length, batch_size) for r in range(world)]
    device = compute_device(decoder.lm_head.weight)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    done = 0
    for batch in _in_step(each, rank) if is_sharded(decoder) else each[rank]:
        inputs, targets = _windows(tokens, batch or [0], sequence_length, start_token)
        documents = documents_of(inputs, start_token).to(device) if document_mask else None
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            nll = decoder.token_losses(inputs.to(device), targets.to(device), documents=documents)
        if not batch:
            continue  # in step with others
        sums += torch.stack([nll.double().sum(), torch.tensor(targets.numel(), device=device)])
        done += len(batch)
        if progress is not None:
            progress(done, len(chosen[rank::world]))
    drop_gathered(decoder)
    if world > 1:
        dist.all_reduce(sums)
    return Score(nll=float(sums[0]), num_tokens=int(sums[1]), num_bytes=num_bytes)


def _spread(num_windows: int, most: int | None) -> np.ndarray[Any, Any]:
    """The numbers of so many windows at most, spread evenly."""
    if most is None or most >= num_windows:
        return np.arange(num_windows)
    return np.linspace(0, num_windows - 1, most).round().astype(np.int64)


def _batches(mine: np.ndarray[Any, Any], length: int, sequence_length: int, batch_size: int) -> list[list[int]]:
    """The windows of this process, by their numbers; the last of the stream is shorter as a rule, so it goes alone."""
    full = [int(i) for i in mine if (i + 1) * sequence_length <= length]
    batches = [full[i : i + batch_size] for i in range(0, len(full), batch_size)]
    return batches + [[int(i)] for i in mine if (i + 1) * sequence_length > length]


def _in_step(each: list[list[list[int]]], rank: int) -> list[list[int]]:
    """The batches of one process, and empty ones: a forward gathers shares from all, so all must take as many."""
    return each[rank] + [[]] * (max(map(len, each)) - len(each[rank]))


def accounting(decoder: Decoder) -> dict[str, Any]:
    """What stands beside a score: the mixer, and what the decoder costs."""
    of_decoder, mixing = decoder.num_parameters()
    dtype = decoder.lm_head.weight.dtype
    return {
        "mixer": decoder.mixer.name,
        "parameters": of_decoder + mixing,
        "mixer_parameters": mixing,
        "kv_bytes_per_token": decoder.plan.bytes_per_token(decoder.shape, dtype),
        "in_flight_bytes_per_token": decoder.mixer.in_flight_bytes(dtype),
    }


def _windows(
    tokens: np.ndarray[Any, Any] | TokenFile, batch: list[int], length: int, start_token: int
) -> tuple[torch.Tensor, torch.Tensor]:
    targets = np.stack([tokens[i * length : (i + 1) * length] for i in batch]).astype(np.int64)
    before = [start_token if i == 0 else int(tokens[i * length - 1]) for i in batch]
    inputs = np.concatenate([np.array(before)[:, None], targets[:, :-1]], axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
