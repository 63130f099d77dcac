"""Chapter 3: a forward is a function: no memory, no side effects, no chance."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, Context, DepthEntries, Mixer
from mixerzoo.model import Decoder
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_same, clause, same_values
from mixerzoo.testing.observe import Call, Method, observed, tensors_in, tokens_of_a_call, wrapped


@clause("3.1")
@torch.no_grad()
def repeatable(mixer: type[Mixer], case: Case) -> None:
    """The same tokens give the same bits again, whatever was computed in between.

    Sees: float64; without gradients.
    Blind: a memory that shows only after many calls.
    """
    decoder, other = case.decoder(mixer), case.decoder(mixer)
    tokens = case.tokens()
    first = decoder(tokens)
    decoder(case.tokens(draw=1)[:, :1])
    other(case.tokens(draw=2))
    assert_same(decoder(tokens), first, "the second forward of the same tokens")
    assert_same(other(tokens), first, "a second decoder of the same weights in the same process")


@clause("3.2", large=("rows", "long", "deep", "wide", "big"))
@torch.no_grad()
def inputs_untouched(mixer: type[Mixer], case: Case) -> None:
    """No call of the mixer changes a tensor that it was given.

    Sees: float64; without gradients; also one cached token.
    Blind: a change that is undone within the call.
    """
    decoder = case.decoder(mixer)
    with observed(decoder.mixer) as calls:
        calls.copy_inputs = True
        decoder(case.tokens())
        decoder(case.tokens()[:, :1], decoder.new_cache(case.batch_size))
    for call in calls.made:
        for before, after in zip(call.copies, tensors_in(call.arguments), strict=True):
            assert_same(after, before, f"an argument of {call.name} at {call.site}")


@clause("3.3", large=("rows", "long", "deep"))
@torch.no_grad()
def nothing_kept(mixer: type[Mixer], case: Case) -> None:
    """A forward leaves nothing behind on the module, on its class, or on the cache.

    Sees: float64; without gradients; also with a cache.
    Blind: what is kept in globals and closures (3.11).
    """
    decoder = case.decoder(mixer)
    cache = decoder.new_cache(case.batch_size)
    cache_names = set(vars(cache))
    before = _state(decoder)
    decoder(case.tokens())
    decoder(case.tokens(), cache)
    after = _state(decoder)
    for name in before.keys() | after.keys():
        assert name in before, f"{name} appeared in a forward"
        assert name in after, f"{name} vanished in a forward"
        assert same_values(before[name], after[name]), f"{name} changed in a forward"
    assert set(vars(cache)) == cache_names, f"the cache got attributes: {sorted(set(vars(cache)) - cache_names)}"


@clause("3.4")
@torch.no_grad()
def no_chance(mixer: type[Mixer], case: Case) -> None:
    """Weights and logits do not depend on the global random generator and do not advance it.

    Sees: float64; building and forward.
    Blind: chance from the clock, from addresses and from files.
    """
    python = random.getstate()
    torch.manual_seed(case.seed)
    first = case.decoder(mixer, perturbed=False)
    torch.manual_seed(case.seed + 1)
    state = torch.get_rng_state()
    second = case.decoder(mixer, perturbed=False)
    for (name, ours), theirs in zip(second.named_parameters(), first.parameters(), strict=True):
        assert_same(ours, theirs, f"the initial {name} under another global seed")
    logits = second(case.tokens())
    assert_same(torch.get_rng_state(), state, "the state of the global generator")
    torch.manual_seed(case.seed + 2)
    assert_same(second(case.tokens()), logits, "logits under another global seed")
    assert random.getstate() == python, "Python's generator `random` was advanced or seeded"


@clause("3.5", large=("rows", "long", "deep", "wide", "big"))
@torch.no_grad()
def returns(mixer: type[Mixer], case: Case) -> None:
    """Every call returns what the decoder expects: a state, and tensors of the right shape and dtype.

    Sees: bf16 weights; also through a growing cache.
    Blind: tensors of the right shape with wrong numbers.
    """
    decoder = case.decoder(mixer, dtype=torch.bfloat16)
    tokens = case.tokens()
    width = None if decoder.plan.tail is None else decoder.plan.tail.width
    for cache, pieces in ((None, [tokens]), (decoder.new_cache(case.batch_size), case.pieces(tokens))):
        for piece in pieces:
            hidden = (case.batch_size, tokens_of_a_call(decoder, piece.size(1)), decoder.shape.hidden_size)
            with observed(decoder.mixer, inspect=partial(_assert_expected, hidden=hidden, width=width)):
                decoder(piece, cache)


@clause("3.6")
@torch.no_grad()
def train_and_eval(mixer: type[Mixer], case: Case) -> None:
    """Training mode and evaluation mode give the same bits.

    Sees: float64; without gradients.
    Blind: modes that differ in their gradients or through a cache.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    training, evaluating = (decoder.train(mode)(tokens) for mode in (True, False))
    assert_same(evaluating, training, "logits in evaluation mode, against those in training mode")


@clause("3.7")
@torch.no_grad()
def without_tokens(mixer: type[Mixer], case: Case) -> None:
    """Where embeddings are passed in place of tokens, the logits are the same, or a MixerError says what is missing.

    Sees: float64; without a cache.
    Blind: embeddings that are no rows of the table.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    expected = decoder(tokens)

    def untold(name: str, method: Method) -> Method:
        def call(*arguments: Any) -> Any:
            return method(*(a._replace(tokens=None) if isinstance(a, Context) else a for a in arguments))

        return call

    with wrapped(decoder.mixer, untold):
        try:
            logits = decoder(tokens)
        except MixerError:
            return
    assert_same(logits, expected, "logits of a forward whose Context.tokens is None")


def _assert_expected(call: Call, hidden: tuple[int, ...], width: int | None) -> None:
    """Demand of a call's result what its name promises; ``hidden`` is [B, T, D], ``width`` that of the plan's tail."""
    result = call.result
    if call.name in ("mix_raw_kv", "mix_kv"):
        assert isinstance(result, tuple), f"{call} returned {_described(result)}, expected state, k and v"
        assert len(result) == 3, f"{call} returned {len(result)} things, expected state, k and v"
        for name, new in zip(("k", "v"), result[1:], strict=True):
            _assert_like(new, tuple(getattr(call.arguments[1], name).shape), f"{call}: {name}")
    elif call.name == "depth_kv" and result is not None:
        assert isinstance(result, DepthEntries), f"{call} returned {_described(result)}, expected DepthEntries or None"
        q = call.arguments[1].q
        for name, given in zip(("k", "v"), result, strict=True):
            assert isinstance(given, Tensor | tuple), f"{call}: {name} is {_described(given)}, expected tensors"
        keys, values = result.each()
        assert len(keys) == len(values), f"{call}: {len(keys)} keys and {len(values)} values, expected as many"
        for name, entries in (("k", keys), ("v", values)):
            for new in entries:
                assert isinstance(new, Tensor), f"{call}: {name} has {_described(new)}, expected a tensor"
                _assert_like(new, (q.size(0), new.size(1), q.size(2), new.size(-1)), f"{call}: {name} [B, G, T, d]")
    elif call.name == "fuse_kv":
        assert isinstance(result, tuple), f"{call} returned {_described(result)}, expected k and v"
        assert len(result) == 2, f"{call} returned {len(result)} things, expected k and v"
        for name, new, (given, *_) in zip(("k", "v"), result, call.arguments[1:], strict=True):
            _assert_like(new, tuple(given.shape), f"{call}: {name}")
    elif call.name == "tail":
        assert width is not None
        _assert_like(result, (*hidden[:2], width), str(call))
    elif call.name in ("read", "finish"):
        parts = result if isinstance(result, AttentionInputs) else (result,)
        allowed = call.site is not None and call.site.branch == "attention"
        assert len(parts) == 1 or allowed, f"{call} returned AttentionInputs, expected one tensor {list(hidden)}"
        for part in parts:
            _assert_like(part, hidden, str(call))
    if call.name in ("start", "mix_raw_kv", "mix_kv", "write"):
        assert call.state is not None, f"{call} returned None, expected a state"
        _assert_value(call.state, f"{call}: the state")


def _assert_value(state: Any, what: str) -> None:
    """Demand a state that nobody can change behind the decoder's back: tensors in tuples, or None in their place."""
    if isinstance(state, tuple):
        names = getattr(state, "_fields", None) or map(str, range(len(state)))
        for name, part in zip(names, state, strict=True):
            _assert_value(part, f"{what}.{name}")
        return
    assert state is None or isinstance(state, Tensor), (
        f"{what} is {_described(state)}, expected a tensor or a (named) tuple of tensors: a state is a value"
    )


def _assert_like(tensor: Any, shape: tuple[int, ...], what: str) -> None:
    wanted = f"a bfloat16 tensor {list(shape)}"
    matches = isinstance(tensor, Tensor) and tuple(tensor.shape) == shape and tensor.dtype == torch.bfloat16
    assert matches, f"{what} returned {_described(tensor)}, expected {wanted}"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _state(decoder: Decoder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, module in decoder.named_modules():
        for name, value in vars(module).items():
            if name not in ("_modules",):
                found[f"{path}.{name}"] = _frozen(value)
    for owner in type(decoder.mixer).__mro__:
        if issubclass(owner, Mixer):
            for name, value in vars(owner).items():
                if not callable(value) and not name.startswith("__"):
                    found[f"{owner.__name__}.{name}"] = _frozen(value)
    return found


def _frozen(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A copy that later changes cannot reach, of objects what they hold; ``within`` says inside of which it lies."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if id(value) in within or isinstance(value, nn.Module | type) or callable(value):
        return value
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return {key: _frozen(inner, within) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, Iterable) and isinstance(value, Sized) and not isinstance(value, str | bytes):
        return [_frozen(inner, within) for inner in value]
    slots = [name for owner in type(value).__mro__ for name in getattr(owner, "__slots__", ())]
    held = {name: getattr(value, name) for name in (*getattr(value, "__dict__", ()), *slots) if hasattr(value, name)}
    return {"": type(value), **_frozen(held, within)} if held else value
