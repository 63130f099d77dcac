"""Cuts a token stream into training sequences."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class TokenWindows(Dataset[dict[str, Tensor]]):
    """Non-overlapping sequences of a token stream, as a map-style dataset.

    Item ``i`` is ``{"input_ids": tokens[i*T : i*T+T], "labels": tokens[i*T+1 : i*T+T+1]}``, both int64 of
    shape ``[T]``. The labels are already shifted: ``labels[t]`` is the token after ``input_ids[t]``. Tokens
    after the last full sequence are not used.
    """

    def __init__(self, tokens: np.ndarray[Any, Any], sequence_length: int) -> None:
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

    def __getstate__(self) -> dict[str, Any]:
        # Pickled for a worker process, a memory map would be copied whole: send the name of its file instead.
        state = self.__dict__.copy()
        tokens = self._tokens
        if isinstance(tokens, np.memmap) and isinstance(tokens.base, mmap.mmap):
            state["_tokens"] = {
                "filename": tokens.filename,
                "dtype": tokens.dtype,
                "offset": tokens.offset,
                "shape": tokens.shape,
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(state["_tokens"], dict):
            self._tokens = np.memmap(mode="r", **state["_tokens"])
