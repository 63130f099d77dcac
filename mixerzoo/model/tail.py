"""The last vectors of each sequence, which a cache keeps for a mixer beside keys and values."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from mixerzoo.errors import CacheError
from mixerzoo.mixer import Tail
from mixerzoo.model.storage import arriving, replaced, static, taken_in


def earlier(past: Tensor, new: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    """`Context.earlier` of the new tokens.

    Args:
        past: vectors of the n tokens before them [B, n, width]; zeros where a sequence has none.
        new: their own vectors [B, T, width].
        positions: [B or 1, T], from 0 in every text: before the first token of a text there is none, whatever lies
            there in the row.
    """
    length, joined = past.size(1), torch.cat([past.to(new.dtype), new], dim=1)
    return tuple(
        joined[:, length - back : joined.size(1) - back] * (positions >= back).unsqueeze(-1)
        for back in range(1, length + 1)
    )


class TailStorage:
    """One vector a token, [B, kept, width], the newest last; before the first token of a sequence there are zeros.

    Its storage is fixed or replaced at every change, as that of the cache's slots; its size is the same either way.

    Args:
        tail: how many vectors are asked for, and their width.
        batch_size: B.
        dtype: of the vectors.
        device: where they live.
        fixed: whether it is written in place for its whole life.
        max_rollback: how many tokens `crop` must be able to take back.
    """

    def __init__(
        self, tail: Tail, batch_size: int, *, dtype: torch.dtype, device: torch.device, fixed: bool, max_rollback: int
    ) -> None:
        self.tail, self.fixed = tail, fixed
        zeros = partial(static, torch.zeros) if fixed else torch.zeros
        self.data = zeros((batch_size, tail.length + max_rollback, tail.width), dtype=dtype, device=device)
        # Vectors of tokens before this position were dropped before a crop and cannot come back.
        self._oldest = 0
        # Of a forward that goes on.
        self._arrived: Tensor | None = None

    def extend(self, new: Tensor) -> Tensor:
        """Have `advance` take in the new tokens' vectors [B, T, width]; those asked for before them come back."""
        past = self.data[:, -self.tail.length :].clone()
        new = new.to(self.data.dtype)
        joined = torch.cat([self.data, new], dim=1) if self.fixed else new
        self._arrived = arriving(joined, new, self.data.size(1), 1, fixed=self.fixed)
        return past

    def advance(self) -> None:
        """Take in what `extend` was given since."""
        if self._arrived is not None:
            self.data = taken_in(self.data, self._arrived, self.data.size(1), 1, fixed=self.fixed)
            self._arrived = None

    def crop(self, length: int, present: int) -> None:
        """Forget the tokens from position ``length`` on, of ``present`` ones.

        Raises:
            CacheError: what the next token would be given was dropped; nothing is changed then.
        """
        dropped, oldest = present - length, max(self._oldest, present - self.data.size(1))
        first_needed = max(0, length - self.tail.length)
        if first_needed < length and oldest > first_needed:
            raise CacheError(
                f"cannot crop {dropped} tokens: the tail has dropped what it would need; create the cache with "
                f"max_rollback={dropped} or more"
            )
        self._oldest, self._arrived = min(oldest, length), None
        kept = self.data[:, : max(0, self.data.size(1) - dropped)]
        none = torch.zeros_like(self.data[:, kept.size(1) :])
        self._put(torch.cat([none, kept], dim=1))

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self._arrived = None
        self._put(self.data.index_select(0, rows))

    def copy(self) -> TailStorage:
        """An independent one of the same content."""
        twin = copy.copy(self)
        twin._arrived = None
        twin.data = static(torch.clone, self.data) if self.fixed else self.data.clone()
        return twin

    def reset(self) -> None:
        """Forget everything."""
        self._oldest, self._arrived = 0, None
        if self.fixed and self.data.requires_grad:
            self.data = static(torch.zeros, self.data.size(), dtype=self.data.dtype, device=self.data.device)
        else:
            self._put(torch.zeros_like(self.data))

    def _put(self, new: Tensor) -> None:
        self.data = replaced(self.data, new, fixed=self.fixed)
