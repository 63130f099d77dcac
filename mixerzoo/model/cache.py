"""The one interface between a decoder and the past.

The cache stores what each step's attention reads: keys and values after all mixing. It knows slots and
windows from the plan, and nothing of mixers. With latent attention the latents take the place of keys, and the weights
of mixed values, if any, that of values. Shapes: B batch, G key/value heads, d head_dim, T new
tokens, S tokens that attention sees (past and new).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from mixerzoo.errors import CacheError
from mixerzoo.mixer import DecoderShape, Plan
from mixerzoo.model.storage import arriving, cleared, replaced, static, taken_in, writable
from mixerzoo.model.tail import TailStorage


class KVCache:
    """Keys and values of every slot that a plan owns.

    A step calls `append` once per forward with its new keys and values and attends to what comes back;
    the decoder calls `advance` once, after all else. Storage is either growing (by blocks) or fixed
    (allocated in full, of constant shape, as compiled decoding needs it). Slots with a window keep only
    their most recent tokens.

    Fixed storage is written in place for its whole life: by appending, cropping, reordering to as many rows and
    resetting. Its tensors are marked as static for the compiler, so that a compiled decoding step can be one CUDA
    graph, also over `reset`.

    With gradients enabled, appended tensors that require them stay in the graph; the storage is then
    replaced instead of written in place, until the next `reset`.

    A forward that is interrupted leaves the past as it was, so the call can be made again; only where steps write one
    slot in turn, so that tokens go one by one, have some become past, as `length` says. Of a compiled one nobody knows
    what it had written: `reset` the cache then.

    Args:
        plan: who owns which slot, and the windows.
        shape: the decoder's sizes.
        batch_size: B.
        dtype: of the stored keys and values.
        device: where they live.
        max_length: None for growing storage, else the fixed number of tokens.
        max_rollback: how many tokens `crop` must be able to take back from windowed slots and from the tail. Slots
            without a window can always be cropped.
        block_size: tokens by which growing storage grows.
    """

    def __init__(
        self,
        plan: Plan,
        shape: DecoderShape,
        batch_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_length: int | None = None,
        max_rollback: int = 0,
        block_size: int = 256,
    ) -> None:
        if batch_size < 1:
            raise CacheError(f"batch_size is {batch_size}; it must be at least 1")
        if max_length is not None and max_length < 1:
            raise CacheError(f"max_length is {max_length}; it must be at least 1")
        if max_rollback < 0:
            raise CacheError(f"max_rollback is {max_rollback}; it must not be negative")
        if block_size < 1:
            raise CacheError(f"block_size is {block_size}; it must be at least 1")
        self.plan = plan
        self.shape = shape
        self.batch_size = batch_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.max_length = max_length
        self.max_rollback = max_rollback
        self.block_size = block_size
        # A fixed cache counts in a tensor, so that a compiled decoding step is one graph for all lengths.
        self._length: int | Tensor = 0
        #: What that tensor holds, if it was looked at since a compiled step: a look waits for the device.
        self._known: int | None = 0
        if max_length is not None:
            self._length = static(torch.zeros, (), dtype=torch.long, device=self.device)
        self._keys = {slot: self._empty(slot, *plan.k_size(shape)) for slot in plan.k_slots}
        self._values = {slot: self._empty(slot, *plan.v_size(shape, slot)) for slot in plan.v_slots}
        self._tail: TailStorage | None = None
        if plan.tail is not None:
            self._tail = TailStorage(
                plan.tail,
                batch_size,
                dtype=dtype,
                device=self.device,
                fixed=max_length is not None,
                max_rollback=max_rollback,
            )
        # By window: tokens before this position were dropped before a crop and cannot come back.
        self._oldest: dict[int, int] = {}
        # Of a forward that goes on, by "keys" or "values" and slot: what `advance` puts into slots with a window.
        self._arrived: dict[tuple[str, int], Tensor] = {}

    # Used by the decoder.

    @property
    def length(self) -> int:
        """Tokens per sequence that have been advanced over."""
        if not isinstance(self._length, Tensor) or torch.compiler.is_compiling():
            return int(self._length)
        # A graph that is being captured would have the number for ever, and to look at it there is an error.
        captures = self._length.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._known is None or captures:
            self._known = int(self._length)
        return self._known

    def positions(self, num_new: int) -> Tensor:
        """Absolute positions int64 [T] of the next ``num_new`` tokens.

        Raises:
            CacheError: they do not fit in fixed storage. (A compiled graph cannot look at the length,
                so there the caller must see to it.)
        """
        if self.max_length is not None and not torch.compiler.is_compiling():
            end = self.length + num_new
            if end > self.max_length:
                raise CacheError(
                    f"{num_new} new tokens after {self.length} do not fit in a cache of max_length "
                    f"{self.max_length}; make it at least {end}, or use a growing cache (max_length=None)"
                )
        return self._length + torch.arange(num_new, device=self.device)

    def key_positions(self, window: int | None, num_new: int) -> Tensor:
        """Absolute positions int64 [S] of what `append` returns for slots of this window.

        Negative positions mark storage that has never been filled.
        """
        if window is None:
            return torch.arange(self._span(num_new), device=self.device)
        kept = self._held(window)
        return self._length - kept + torch.arange(kept + num_new, device=self.device)

    def append(self, slot: int, k: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Store the new keys and values of a slot and return all that attention sees there.

        Nothing of the past is overwritten before `advance`.

        Args:
            slot: its number in the plan. What a step wrote there in this forward, another one replaces.
            k: new keys [B, G, T, d], or None for none.
            v: new values [B, G, T, d], or None for none.

        Returns:
            Keys and values [B, G, S, d], or None where None was given. Their positions are
            ``key_positions(window of the slot, T)``.

        Raises:
            CacheError: the slot is not in the plan, or the batch is of another size.
        """
        keys = None if k is None else self._append(self._keys, "keys", slot, k)
        values = None if v is None else self._append(self._values, "values", slot, v)
        return keys, values

    def extend_tail(self, new: Tensor) -> Tensor:
        """Have `advance` take the new tokens' vectors [B, T, width] into the tail.

        Returns:
            The last ``Tail.length`` vectors before them.

        Raises:
            CacheError: the plan has no tail, or the batch is of another size.
        """
        if self._tail is None:
            raise CacheError("this cache's plan has no tail")
        if new.size(0) != self.batch_size:
            raise CacheError(f"a batch of {new.size(0)} rows does not fit in a cache of {self.batch_size}")
        return self._tail.extend(new)

    def advance(self, num_new: int) -> None:
        """Make the ``num_new`` appended tokens past."""
        for (what, slot), arrived in self._arrived.items():
            storage, window = self._keys if what == "keys" else self._values, self.plan.windows[slot]
            assert window is not None
            fixed, room = self.max_length is not None, self._window_storage(window)
            storage[slot] = taken_in(storage[slot], arrived, room, 2, fixed=fixed)
        self._arrived = {}
        if self._tail is not None:
            self._tail.advance()
        self._count(num_new)

    def _count(self, num_new: int) -> None:
        if not isinstance(self._length, Tensor):
            self._length += num_new
        elif torch.compiler.is_compiling():
            # A number would make a graph for every length.
            self._length.add_(num_new)
            self._known = None
        else:
            known, self._known = self.length, None
            self._length.add_(num_new)
            self._known = known + num_new

    # Used by those who decode.

    def crop(self, length: int) -> None:
        """Forget all tokens from position ``length`` on (speculative decoding rolls back so).

        Raises:
            CacheError: ``length`` is negative or beyond the present length, or a windowed slot or the tail no
                longer has the tokens that it would need; `max_rollback` makes it keep them.
        """
        if not 0 <= length <= self.length:
            raise CacheError(f"cannot crop to {length} tokens: the cache holds {self.length}")
        dropped = self.length - length
        oldest = dict(self._oldest)
        for limit in {window for _, _, window in self._slots() if window is not None}:
            oldest[limit] = max(oldest.get(limit, 0), self.length - self._window_storage(limit))
            first_needed = max(0, length - limit + 1)
            if first_needed < length and oldest[limit] > first_needed:
                raise CacheError(
                    f"cannot crop {dropped} tokens: a slot of window {limit} has dropped what it would "
                    f"need; create the cache with max_rollback={dropped} or more"
                )
        if self._tail is not None:
            self._tail.crop(length, self.length)
        # Positions from ``length`` on will be filled again.
        self._oldest = {limit: min(first, length) for limit, first in oldest.items()}
        for step, storage, window in self._slots():
            data = storage[step]
            if window is None:
                storage[step] = cleared(data, length, self.length)
            elif dropped:
                kept = data[:, :, : max(0, data.size(2) - dropped)]
                if self.max_length is not None:
                    kept = torch.cat([torch.zeros_like(data[:, :, kept.size(2) :]), kept], dim=2)
                storage[step] = self._replaced(data, kept)
        self._arrived = {}
        self._count(-dropped)

    def reorder(self, rows: Tensor) -> None:
        """Make row i of the batch what row ``rows[i]`` was (beam search); the batch size may change.

        Args:
            rows: int64 [new batch size], on any device.

        Raises:
            CacheError: a row is out of range.
        """
        rows = rows.to(self.device)
        if rows.ndim != 1 or len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= self.batch_size:
            raise CacheError(f"rows must be a vector of numbers from 0 to {self.batch_size - 1}, got {rows.tolist()}")
        self._arrived = {}
        for step, storage, _ in self._slots():
            storage[step] = self._replaced(storage[step], storage[step].index_select(0, rows))
        if self._tail is not None:
            self._tail.reorder(rows)
        self.batch_size = len(rows)

    def copy(self) -> KVCache:
        """An independent cache of the same content (one prefix, many continuations)."""
        clone = torch.clone if self.max_length is None else partial(static, torch.clone)
        twin = copy.copy(self)
        if isinstance(self._length, Tensor):
            twin._length = clone(self._length)
        twin._tail = None if self._tail is None else self._tail.copy()
        twin._oldest, twin._arrived = dict(self._oldest), {}
        twin._keys = {step: clone(data) for step, data in self._keys.items()}
        twin._values = {step: clone(data) for step, data in self._values.items()}
        return twin

    def reset(self) -> None:
        """Forget everything; fixed storage stays allocated."""
        if isinstance(self._length, Tensor):
            self._length.zero_()
            self._known = 0
        else:
            self._length = 0
        self._oldest, self._arrived = {}, {}
        if self._tail is not None:
            self._tail.reset()
        for step, storage, _ in self._slots():
            data = storage[step]
            if self.max_length is None or data.requires_grad:
                storage[step] = self._empty(step, data.size(1), data.size(3))
            else:
                data.zero_()

    @property
    def bytes_per_token(self) -> int:
        """Persistent bytes that one token of one sequence adds while no window is full."""
        return self.plan.bytes_per_token(self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys, values and tail: those held by growing storage, all of fixed storage.

        The unused end of the last block of growing storage counts in `allocated_nbytes` only.
        """
        if self.max_length is not None:
            return self.allocated_nbytes
        total = 0 if self._tail is None else self._tail.data.nbytes
        for step, storage, window in self._slots():
            data = storage[step]
            held = self.length if window is None else data.size(2)
            total += data[:, :, :held].nbytes
        return total

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of all storage."""
        tail = 0 if self._tail is None else self._tail.data.nbytes
        return tail + sum(storage[step].nbytes for step, storage, _ in self._slots())

    def __repr__(self) -> str:
        kind = "growing" if self.max_length is None else f"max_length={self.max_length}"
        return (
            f"KVCache(batch_size={self.batch_size}, length={self.length}, {kind}, dtype={self.dtype}, "
            f"slots={len(self._keys)}K+{len(self._values)}V, nbytes={self.nbytes})"
        )

    # Storage: [B, heads, capacity, width] for each owned slot.

    def _slots(self) -> Iterator[tuple[int, dict[int, Tensor], int | None]]:
        for storage in (self._keys, self._values):
            for step in storage:
                yield step, storage, self.plan.windows[step]

    def _window_storage(self, window: int) -> int:
        kept = window + self.max_rollback
        return kept if self.max_length is None else min(kept, self.max_length)

    def _held(self, window: int) -> int:
        """Tokens that the storage of a windowed slot holds now."""
        if self.max_length is not None:
            return self._window_storage(window)
        return next(storage[step].size(2) for step, storage, w in self._slots() if w == window)

    def _empty(self, step: int, heads: int, width: int) -> Tensor:
        window = self.plan.windows[step]
        if self.max_length is None:
            capacity = 0
        elif window is None:
            capacity = self.max_length
        else:
            capacity = self._window_storage(window)
        # Zeros, because attention weighs unfilled storage with an exact 0, and 0 × NaN is NaN.
        size = (self.batch_size, heads, capacity, width)
        if self.max_length is None:
            return torch.zeros(size, dtype=self.dtype, device=self.device)
        return static(torch.zeros, size, dtype=self.dtype, device=self.device)

    def _replaced(self, data: Tensor, new: Tensor) -> Tensor:
        """Storage with the content ``new``; see `replaced`."""
        return replaced(data, new, fixed=self.max_length is not None)

    def _span(self, num_new: int) -> int:
        """S of a slot without window: a compiled graph over fixed storage sees all of it."""
        if self.max_length is not None and torch.compiler.is_compiling():
            return self.max_length
        return self.length + num_new

    def _append(self, storage: dict[int, Tensor], what: str, slot: int, new: Tensor) -> Tensor:
        data = storage.get(slot)
        if data is None:
            raise CacheError(f"there is no slot {slot} of {what} in this cache's plan")
        if new.size(0) != self.batch_size:
            raise CacheError(f"a batch of {new.size(0)} rows does not fit in a cache of {self.batch_size}")
        new = new.to(data.dtype)
        num_new = new.size(2)
        window = self.plan.windows[slot]
        if window is not None:
            seen, fixed = torch.cat([data, new], dim=2), self.max_length is not None
            self._arrived[what, slot] = arriving(seen, new, self._window_storage(window), 2, fixed=fixed)
            return seen
        span = self._span(num_new)
        in_graph = torch.is_grad_enabled() and (new.requires_grad or data.requires_grad)
        if self.max_length is None:
            if in_graph:
                data = torch.cat([data[:, :, : self.length], new], dim=2)
            else:
                data = writable(self._grown(data, span))
                data[:, :, self.length : span] = new
        else:
            positions = self._length + torch.arange(num_new, device=self.device)
            if in_graph:
                data = data.index_copy(2, positions, new)
            else:
                data.index_copy_(2, positions, new)
        storage[slot] = data
        return data[:, :, :span]

    def _grown(self, data: Tensor, span: int) -> Tensor:
        if span <= data.size(2):
            return data
        capacity = -(-span // self.block_size) * self.block_size
        grown = data.new_zeros(data.size(0), data.size(1), capacity, data.size(3))
        grown[:, :, : self.length] = data[:, :, : self.length]
        return grown
