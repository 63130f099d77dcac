"""Cuts a token stream into training sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixerzoo.data.tokens import TokenFile


class TokenWindows(Dataset[dict[str, Tensor]]):
    """Non-overlapping sequences of a token stream, as a map-style dataset.

    Item ``i`` is ``{"input_ids": tokens[i*T : i*T+T], "labels": tokens[i*T+1 : i*T+T+1]}``, both int64 of
    shape ``[T]``. The labels are already shifted: ``labels[t]`` is the token after ``input_ids[t]``. Tokens
    after the last full sequence are not used.
    """

    def __init__(self, tokens: np.ndarray[Any, Any] | TokenFile, sequence_length: int) -> None:
        """
        Args:
            tokens: one-dimensional ids of any integer type, such as ``PreparedData.train.tokens``.
            sequence_length: T, the tokens in one sequence.
        """
        self._tokens = tokens
        self._sequence_length = sequence_length

    def __len__(self) -> int:
        return max(0, len(self._tokens) - 1) // self._sequence_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = index * self._sequence_length
        window = torch.from_numpy(self._tokens[start : start + self._sequence_length + 1].astype(np.int64))
        return {"input_ids": window[:-1], "labels": window[1:]}
