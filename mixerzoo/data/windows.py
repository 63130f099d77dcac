"""Cuts a token stream into training sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixerzoo.data.tokens import TokenFile

# Sequences whose documents are measured.
_SAMPLE = 256


class TokenWindows(Dataset[dict[str, Tensor]]):
    """Non-overlapping sequences of a token stream, as a map-style dataset.

    Item ``i`` is ``{"input_ids": tokens[i*T : i*T+T], "labels": tokens[i*T+1 : i*T+T+1]}``, both int64 of
    shape ``[T]``. The labels are already shifted: ``labels[t]`` is the token after ``input_ids[t]``. Tokens
    after the last full sequence are not used.

    With ``end_of_text``, items have ``documents`` too: for each input the number of its document in the sequence,
    from 0 or 1 on, int64 of shape ``[T]``. The end of a text begins the document after it, as the input from which its
    first token is predicted, and is the last label of the document before.
    """

    def __init__(
        self, tokens: np.ndarray[Any, Any] | TokenFile, sequence_length: int, end_of_text: int | None = None
    ) -> None:
        """
        Args:
            tokens: one-dimensional ids of any integer type, such as ``PreparedData.train.tokens``.
            sequence_length: T, the tokens in one sequence.
            end_of_text: the id that ends a document, where documents are to be told apart.
        """
        self._tokens = tokens
        self._sequence_length = sequence_length
        self._end_of_text = end_of_text

    def __len__(self) -> int:
        return max(0, len(self._tokens) - 1) // self._sequence_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = index * self._sequence_length
        window = torch.from_numpy(self._tokens[start : start + self._sequence_length + 1].astype(np.int64))
        item = {"input_ids": window[:-1], "labels": window[1:]}
        if self._end_of_text is not None:
            item["documents"] = documents_of(item["input_ids"], self._end_of_text)
        return item

    def document_lengths(self) -> list[int] | None:
        """Tokens of each document in each of some sequences, spread evenly over all; None where all are one."""
        if self._end_of_text is None:
            return None
        chosen = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).round().astype(int).tolist()
        return [
            length
            for index in chosen
            for length in self[index]["documents"].unique_consecutive(return_counts=True)[1].tolist()
        ]


def documents_of(inputs: Tensor, end_of_text: int) -> Tensor:
    """For each input the number of its document in its row.

    Args:
        inputs: ids ``[..., T]``.
        end_of_text: the id with which a document begins.
    """
    return (inputs == end_of_text).cumsum(-1)
