"""What a mixer's state takes per token, from its shapes.

The calls of a forward are made for one token and for two, without a decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixerzoo.errors import MixerError
from mixerzoo.mixer.calls import State
from mixerzoo.mixer.walk import Walk, of_zeros

if TYPE_CHECKING:
    from mixerzoo.mixer.base import Mixer

#: Identity of a stretch of memory → its bytes.
_Spans: TypeAlias = dict[object, int]

#: Of each mixer, by dtype: nothing that it depends on changes.
_known: WeakKeyDictionary[Mixer, dict[torch.dtype, int]] = WeakKeyDictionary()


def peak_bytes_per_token(mixer: Mixer, dtype: torch.dtype) -> int:
    """Peak bytes by which each token makes the state of a mixer larger, between two of its calls.

    A stretch of memory that several tensors share counts once. Of a tensor that the decoder gave, what a view shows
    counts; of any other, the whole.

    Args:
        mixer: on any device; nothing of it is read but its class, options and shape.
        dtype: of hidden states and parameters.

    Raises:
        MixerError: the mixer cannot be run so.
    """
    known = _known.setdefault(mixer, {})
    if dtype not in known:
        known[dtype] = _walked(mixer, dtype)
    return known[dtype]


def _walked(mixer: Mixer, dtype: torch.dtype) -> int:
    twin = of_zeros(mixer, dtype)
    try:
        with torch.no_grad(), torch.device("cpu"):
            one, two = (_bytes_of_states(twin, dtype, num_tokens) for num_tokens in (1, 2))
    except (NotImplementedError, RuntimeError) as error:
        raise MixerError(
            f"mixer {mixer.name!r}: the bytes of its state cannot be derived, for it fails on zeros ({error}); let it "
            "define in_flight_bytes"
        ) from error
    return max(of_two - of_one for of_one, of_two in zip(one, two, strict=True))


def _bytes_of_states(mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> list[int]:
    walk = _Counted(mixer, dtype, num_tokens)
    return [walk.bytes(made.state) for made in walk.made() if made.hook not in ("read", "finish")]


class _Counted(Walk):
    """A forward of a mixer alone, that knows what the decoder gave."""

    def __init__(self, mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> None:
        super().__init__(mixer, dtype, num_tokens)
        # By address; whatever is there stays alive, lest another gets its place.
        self.lent: dict[int, Tensor] = {}
        self.spans: dict[int, tuple[State, _Spans]] = {}

    def zeros(self, before: tuple[int, ...], after: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        tensor = super().zeros(before, after, dtype)
        self.lent[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def bytes(self, state: State) -> int:
        """What the tensors of a state keep in memory."""
        spans: _Spans = {}
        self._collect(state, spans)
        return sum(spans.values())

    def _collect(self, state: State, spans: _Spans) -> None:
        """Enter every tensor of a state."""
        if state is None:
            return
        if id(state) not in self.spans:
            found: _Spans = {}
            if isinstance(state, Tensor):
                found = self._span(state)
            else:
                for part in state:
                    self._collect(part, found)
            # A state passes most of its parts on.
            self.spans[id(state)] = (state, found)
        spans.update(self.spans[id(state)][1])

    def _span(self, tensor: Tensor) -> _Spans:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.lent:
            return {(storage.data_ptr(), tensor.storage_offset(), tensor.shape): tensor.nbytes}
        return {storage.data_ptr(): storage.nbytes()}
