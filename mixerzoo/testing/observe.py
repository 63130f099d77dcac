"""Watches the calls that a decoder makes to its mixer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from mixerzoo.mixer import AttentionCall, Mixer, Site
from mixerzoo.model import Decoder

CALLS = ("tail", "start", "read", "mix_raw_kv", "mix_kv", "fuse_kv", "value_weights", "depth_kv", "write", "finish")
#: Those that return a state, alone or with keys and values.
_STATEFUL = ("start", "mix_raw_kv", "mix_kv", "write")

Method: TypeAlias = Callable[..., Any]


@contextmanager
def wrapped(mixer: Mixer, wrap: Callable[[str, Method], Method]) -> Iterator[None]:
    """Put something around every call of the mixer's interface.

    Args:
        mixer: changed while the context lasts.
        wrap: from a method's name and the method, what is called in its place; the method itself to leave it.
    """
    before = {name: vars(mixer)[name] for name in CALLS if name in vars(mixer)}
    for name in CALLS:
        method = getattr(mixer, name)
        # An instance attribute hides the method until it is deleted again.
        wrapper = wrap(name, method)
        vars(mixer)[name] = method if wrapper is method else functools.wraps(method)(wrapper)
    try:
        yield
    finally:
        for name in CALLS:
            del vars(mixer)[name]
        vars(mixer).update(before)


@dataclass
class Call:
    """One call.

    Attributes:
        name: of the method.
        arguments: that it was given.
        result: what it returned.
        copies: of the tensors in its arguments, as they were before, if asked for.
    """

    name: str
    arguments: tuple[Any, ...]
    result: Any
    copies: list[Tensor]

    @property
    def state(self) -> Any:
        """The state that it returned; None for calls that return none."""
        if self.name not in _STATEFUL:
            return None
        return self.result[0] if self.name in ("mix_raw_kv", "mix_kv") else self.result

    @property
    def site(self) -> Site | None:
        """Where the call was made; None for start and finish."""
        for argument in self.arguments:
            if isinstance(argument, Site | AttentionCall):
                return argument if isinstance(argument, Site) else argument.site
        return None

    def __str__(self) -> str:
        return self.name if self.site is None else f"{self.name} at {self.site}"


@dataclass
class Calls:
    """The calls of a stretch of time.

    Attributes:
        made: in order.
        copy_inputs: whether to copy tensors before each call.
    """

    made: list[Call] = field(default_factory=list)
    copy_inputs: bool = False


@contextmanager
def observed(mixer: Mixer, inspect: Callable[[Call], None] | None = None) -> Iterator[Calls]:
    """Record every call of the mixer's interface.

    Args:
        mixer: watched while the context lasts.
        inspect: given every call before its result is used.
    """
    calls = Calls()

    def watch(name: str, method: Method) -> Method:
        def call(*arguments: Any) -> Any:
            copies = [tensor.clone() for tensor in tensors_in(arguments)] if calls.copy_inputs else []
            calls.made.append(Call(name, arguments, method(*arguments), copies))
            if inspect is not None:
                inspect(calls.made[-1])
            return calls.made[-1].result

        return call

    with wrapped(mixer, watch):
        yield calls


def tokens_of_a_call(decoder: Decoder, num_tokens: int) -> int:
    """Of as many tokens in one forward, those that each call gets: where steps write one slot in turn, one."""
    return 1 if decoder.plan.is_sequential else num_tokens


def largest_passed(decoder: Decoder, tokens: Tensor) -> float:
    """The largest entry of all that sublayers and the head read and give, logits included.

    Args:
        decoder: of any dtype.
        tokens: [B, T].
    """
    with observed(decoder.mixer) as calls:
        logits = decoder(tokens)
    passed = [call.result for call in calls.made if call.name in ("read", "finish")]
    passed += [call.arguments[-1] for call in calls.made if call.name == "write"]
    return max(float(tensor.abs().max()) for tensor in (logits, *tensors_in(tuple(passed))))


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for inner in value for tensor in tensors_in(inner)]
    return []


def _given(call: Call) -> list[Any]:
    """What the decoder made and passed: not the state, nor what the mixer had let it read."""
    arguments = call.arguments if call.name in ("tail", "start") else call.arguments[1:]
    return [(a.q, a.k, a.v) if isinstance(a, AttentionCall) else a for a in arguments]


def state_bytes(calls: Calls) -> list[int]:
    """Bytes that the tensors in each call's state keep in memory, each stretch of it counted once.

    What a view shows of a tensor that the decoder gave counts alone; of any other tensor the whole counts.
    """
    lent = _lent(calls)
    return [sum(nbytes for _, nbytes in _kept(call.state, lent).values()) for call in calls.made]


def largest_state(calls: Calls) -> str:
    """In words: the call after which the state is largest, and the tensors that are counted there."""
    sizes, lent = state_bytes(calls), _lent(calls)
    call = calls.made[sizes.index(max(sizes))]
    counted = [f"{words}, {nbytes} bytes" for words, nbytes in _kept(call.state, lent).values()]
    return f"after {call}: {'; '.join(counted) or 'no tensor'}"


def _lent(calls: Calls) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for call in calls.made for tensor in tensors_in(_given(call))}


def _kept(state: Any, lent: set[int]) -> dict[Any, tuple[str, int]]:
    """Stretch of memory → the tensor that keeps it, in words, and bytes."""
    spans: dict[Any, tuple[str, int]] = {}
    for name, tensor in _named(state, "state"):
        memory = tensor.untyped_storage()
        words = f"{name} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if memory.data_ptr() in lent:
            spans[memory.data_ptr(), tensor.storage_offset(), tensor.shape] = words, tensor.nbytes
            continue
        if memory.nbytes() > tensor.nbytes:
            words += " with the larger tensor of which it is a view"
        spans.setdefault(memory.data_ptr(), (words, memory.nbytes()))
    return spans


def _named(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state, by their place in it."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from _named(part, f"{name}[{key!r}]")
    elif isinstance(state, tuple | list):
        fields = getattr(state, "_fields", None)
        for number, part in enumerate(state):
            yield from _named(part, f"{name}[{number}]" if fields is None else f"{name}.{fields[number]}")
