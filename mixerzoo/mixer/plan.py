"""What is fixed before the first token: who stores what, who reads what, and what the mixer takes part in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from mixerzoo.errors import MixerError
from mixerzoo.mixer.shape import DecoderShape

#: Optional hooks of a mixer.
Hook: TypeAlias = Literal["mix_raw_kv", "mix_kv", "depth_kv", "fuse_kv", "value_weights"]
HOOKS: tuple[Hook, ...] = get_args(Hook)


class Tail(NamedTuple):
    """Vectors that the cache keeps for the mixer, per sequence, beside keys and values.

    Attributes:
        length: n, how many most recent tokens it keeps one of.
        width: elements of a vector.
    """

    length: int
    width: int


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first token; the decoder, its cache, `compose`, the kit and serving read it.

    A *slot* is a place of the cache for the keys, or for the values, of all tokens, and has a number. In each step
    the new tokens' own keys and values, if it has any, are written to a slot, and then the step attends to the slots
    that it reads. The persistent bytes per token follow from the plan alone. Make one with `plain` or `borrowing`,
    and change it with `dataclasses.replace`.

    Attributes:
        order: physical layer of each unrolled step.
        k_writes: for each step the slot that its own keys are written to, or None where it has none. Usually it is
            the step's own number. Steps that write one slot in turn (loops) each take the place of what the one
            before wrote; a decoder runs such a plan token by token.
        v_writes: likewise for values.
        k_reads: for each step the slots whose keys it attends to. Several are fused by `Mixer.fuse_kv`.
        v_reads: likewise for values. With multi-head latent attention several are the slots whose values sum up to
            the step's, its own last, with the weights of `Mixer.value_weights`, which the cache keeps.
        windows: for each slot, how many most recent tokens it keeps (the token itself included), or None for all.
        hooks: the optional hooks of the mixer that the decoder calls.
        needs_own_kv: the method needs the keys and values that each layer computes itself, so it cannot run where a
            layer borrows them from another.
        separate_inputs: `Mixer.read` returns `AttentionInputs` at some site.
        tail: what the cache keeps of each sequence for `Mixer.start`, or None.
        heads_apart: the hooks do the same to every key/value head and its queries, each by itself, so that they work on
            any part of the heads. Tensor parallelism splits a decoder where that is so, or where there are no hooks;
            the gradients of an `AttentionMixer`'s parameters are then summed over the ranks.

    Raises:
        MixerError: what is planned cannot be run; says which step and why.
    """

    order: tuple[int, ...]
    k_writes: tuple[int | None, ...]
    v_writes: tuple[int | None, ...]
    k_reads: tuple[tuple[int, ...], ...]
    v_reads: tuple[tuple[int, ...], ...]
    windows: tuple[int | None, ...]
    hooks: frozenset[Hook] = frozenset()
    needs_own_kv: bool = False
    separate_inputs: bool = False
    tail: Tail | None = None
    heads_apart: bool = False

    def __post_init__(self) -> None:
        num_steps = len(self.order)
        lengths: dict[str, Sequence[Any]] = {
            name: getattr(self, name) for name in ("k_writes", "v_writes", "k_reads", "v_reads", "windows")
        }
        for name, values in lengths.items():
            if len(values) != num_steps:
                raise MixerError(f"plan: {name} has {len(values)} entries for {num_steps} steps")
        for name, writes, reads in (("k", self.k_writes, self.k_reads), ("v", self.v_writes, self.v_reads)):
            _check_slots(name, writes, reads)
        for step in range(num_steps):
            self._check_windows(step)
        if unknown := sorted(set(self.hooks) - set(HOOKS)):
            raise MixerError(f"plan: there is no hook {unknown[0]!r}; the hooks are {', '.join(HOOKS)}")
        if self.tail is not None and min(self.tail) < 1:
            raise MixerError(f"plan: the tail keeps {self.tail.length} vectors of {self.tail.width}; both must be ≥ 1")

    def _check_windows(self, step: int) -> None:
        window = self.windows[step]
        if window is not None and window < 1:
            raise MixerError(f"plan: the window of slot {step} is {window}; it must be at least 1")
        read = {self.windows[slot] for slot in (*self.k_reads[step], *self.v_reads[step])}
        if len(read) > 1:
            raise MixerError(f"plan: step {step} reads keys and values of different windows")

    @classmethod
    def plain(cls, order: Sequence[int], hooks: Iterable[Hook] = ()) -> Plan:
        """Every step owns its keys and its values and keeps all tokens: a vanilla decoder."""
        steps = tuple(range(len(order)))
        return cls.borrowing(order, steps, steps, hooks=hooks)

    @classmethod
    def borrowing(
        cls,
        order: Sequence[int],
        k_slot: Sequence[int],
        v_slot: Sequence[int],
        windows: Sequence[int | None] | None = None,
        hooks: Iterable[Hook] = (),
    ) -> Plan:
        """Every step attends to the keys of one step and to the values of one, its own or an earlier one's.

        Args:
            order: physical layer of each unrolled step.
            k_slot: the step whose keys each step attends to; itself, or an earlier one that attends to its own.
            v_slot: likewise for values.
            windows: for each step, how many most recent tokens its own slots keep; default: all. Entries of steps that
                own nothing are ignored.
            hooks: as in `Plan`.

        Raises:
            MixerError: as `Plan`.
        """
        for name, slots in (("k_slot", k_slot), ("v_slot", v_slot)):
            if len(slots) != len(order):
                raise MixerError(f"plan: {name} has {len(slots)} entries for {len(order)} steps")
            for step, owner in enumerate(slots):
                if not 0 <= owner <= step:
                    raise MixerError(f"plan: step {step} reads {name} {owner}; it must be its own or an earlier one's")
                if slots[owner] != owner:
                    raise MixerError(f"plan: step {step} reads {name} {owner}, which step {owner} does not own")
        return cls(
            order=tuple(order),
            k_writes=tuple(step if owner == step else None for step, owner in enumerate(k_slot)),
            v_writes=tuple(step if owner == step else None for step, owner in enumerate(v_slot)),
            k_reads=tuple((owner,) for owner in k_slot),
            v_reads=tuple((owner,) for owner in v_slot),
            windows=(None,) * len(order) if windows is None else tuple(windows),
            hooks=frozenset(hooks),
        )

    @property
    def slots(self) -> Plan:
        """The plan of the cache alone: who stores and reads what, and none of what the mixer takes part in."""
        return replace(self, hooks=frozenset(), needs_own_kv=False, separate_inputs=False, tail=None, heads_apart=False)

    @property
    def is_plain(self) -> bool:
        """Whether every step stores its own keys and values, keeps them all and attends to them alone."""
        return self.slots == Plan.plain(self.order)

    @property
    def is_sequential(self) -> bool:
        """Whether steps write one slot in turn, so that a token needs the last of them for all tokens before it."""
        return any(
            len(written) > len(set(written))
            for written in ([slot for slot in writes if slot is not None] for writes in (self.k_writes, self.v_writes))
        )

    @property
    def k_slots(self) -> tuple[int, ...]:
        """Numbers of the slots that hold keys, ascending."""
        return tuple(sorted({slot for slot in self.k_writes if slot is not None}))

    @property
    def v_slots(self) -> tuple[int, ...]:
        """Numbers of the slots that hold values, ascending."""
        return tuple(sorted({slot for slot in self.v_writes if slot is not None}))

    def owns_k(self, step: int) -> bool:
        """Whether ``step`` stores keys of its own."""
        return self.k_writes[step] is not None

    def owns_v(self, step: int) -> bool:
        """Whether ``step`` stores values of its own."""
        return self.v_writes[step] is not None

    def window(self, step: int) -> int | None:
        """How many most recent tokens ``step`` attends to, or None for all."""
        return self.windows[self.k_reads[step][0]]

    @property
    def last_owner(self) -> int:
        """The last step that stores keys or values."""
        return max(step for step in range(len(self.order)) if self.owns_k(step) or self.owns_v(step))

    def value_sources(self, step: int) -> tuple[int, ...]:
        """``v_reads`` of a step that reads several, else none."""
        reads = self.v_reads[step]
        return reads if len(reads) > 1 else ()

    def k_size(self, shape: DecoderShape) -> tuple[int, int]:
        """Heads and width of what a token keeps in a slot of keys."""
        return (1, shape.latent_dim) if shape.latent_dim else (shape.num_kv_heads, shape.head_dim)

    def v_size(self, shape: DecoderShape, slot: int) -> tuple[int, int]:
        """Heads and width of what a token keeps in a slot of values."""
        if shape.latent_dim:
            return shape.num_heads, len(self.value_sources(self.v_writes.index(slot)))
        return shape.num_kv_heads, shape.head_dim

    def elements(self, shape: DecoderShape, length: int = 1) -> int:
        """Numbers that ``length`` tokens keep in the slots: Σ over slots of min(length, window) · its size.

        The size of a slot is G · d; with latent attention, that of the latent and of the weights of its sources.
        """
        total = 0
        for slots, sizes in (
            (self.k_slots, [self.k_size(shape)] * len(self.k_slots)),
            (self.v_slots, [self.v_size(shape, slot) for slot in self.v_slots]),
        ):
            for slot, size in zip(slots, sizes, strict=True):
                window = self.windows[slot]
                total += math.prod(size) * (length if window is None else min(length, window))
        return total

    def bytes_per_token(self, shape: DecoderShape, dtype: torch.dtype) -> int:
        """Persistent bytes that one token adds while no window is full."""
        return self.elements(shape) * dtype.itemsize

    def cache_bytes(self, shape: DecoderShape, length: int, dtype: torch.dtype) -> int:
        """Persistent bytes of a sequence of ``length`` tokens: those of its slots and of its tail."""
        return self.elements(shape, length) * dtype.itemsize + self.bytes_per_sequence(dtype)

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        """Persistent bytes of a sequence however long it is: those of the tail."""
        return 0 if self.tail is None else self.tail.length * self.tail.width * dtype.itemsize


def _check_slots(name: str, writes: Sequence[int | None], reads: Sequence[tuple[int, ...]]) -> None:
    """Refuse a slot that is read before anybody wrote it."""
    written: set[int] = set()
    for step, (slot, read) in enumerate(zip(writes, reads, strict=True)):
        if slot is not None:
            if not 0 <= slot < len(writes):
                raise MixerError(f"plan: step {step} writes {name} slot {slot}; slots are from 0 to {len(writes) - 1}")
            written.add(slot)
        if not read:
            raise MixerError(f"plan: step {step} reads no {name} slot; it must attend to something")
        if len(set(read)) < len(read):
            raise MixerError(f"plan: step {step} reads {name} slots {read}; each may be there once")
        for other in read:
            if other not in written:
                raise MixerError(f"plan: step {step} reads {name} slot {other}, which no step has written by then")
