"""The cache against a plain model of it: lists of the tokens that each slot was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

import zoo
from mixerzoo import DecoderShape, KVCache, Plan, Tail
from mixerzoo.errors import CacheError, MixerError

HEADS, HEAD_DIM = 2, 3


def shape(num_steps: int) -> DecoderShape:
    return DecoderShape(
        hidden_size=8,
        num_layers=num_steps,
        num_heads=4,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        order=tuple(range(num_steps)),
        norm_eps=1e-5,
        vocab_size=11,
    )


def new_cache(plan: Plan, batch_size: int = 1, **options: Any) -> KVCache:
    return KVCache(plan, shape(len(plan.order)), batch_size, dtype=options.pop("dtype", torch.float64), **options)


def windowed(*windows: int | None) -> Plan:
    """Every step owns its slots."""
    steps = tuple(range(len(windows)))
    return Plan.borrowing(order=steps, k_slot=steps, v_slot=steps, windows=windows)


def with_tail(length: int, *windows: int | None, width: int = 2) -> Plan:
    """`windowed`, and a tail."""
    return replace(windowed(*windows), tail=Tail(length, width))


def vectors(batch_size: int, num_tokens: int, first: float = 1.0, width: int = 2) -> Tensor:
    """[B, T, width] of numbers that are all different, and none 0."""
    size = (batch_size, num_tokens, width)
    return first + torch.arange(batch_size * num_tokens * width, dtype=torch.float64).view(size)


def numbered(batch_size: int, num_tokens: int, first: float = 0.0) -> Tensor:
    """[B, G, T, d] of numbers that are all different."""
    size = (batch_size, HEADS, num_tokens, HEAD_DIM)
    return first + torch.arange(batch_size * HEADS * num_tokens * HEAD_DIM, dtype=torch.float64).view(size)


def feed(cache: KVCache, k: Tensor, v: Tensor | None = None) -> list[tuple[Tensor | None, Tensor | None]]:
    """One forward: append the same keys and values to every slot, and advance."""
    v = k if v is None else v
    plan, seen = cache.plan, []
    for step in range(len(plan.order)):
        own_k, own_v = (k if plan.owns_k(step) else None), (v if plan.owns_v(step) else None)
        seen.append(cache.append(step, own_k, own_v))
    cache.advance(k.size(2))
    return seen


class Model:
    """What a cache must know: every token that it was given, and how far back each window still reaches.

    Args:
        plan: of the cache.
        batch_size: rows.
        max_rollback: of the cache.
        max_length: of the cache.
    """

    def __init__(self, plan: Plan, batch_size: int, max_rollback: int, max_length: int | None) -> None:
        self.plan, self.batch_size = plan, batch_size
        self.max_rollback, self.max_length = max_rollback, max_length
        self.reset()

    def reset(self) -> None:
        """Nothing was given."""
        self.length = self.furthest = 0
        slots = [("k", s) for s in range(len(self.plan.order)) if self.plan.owns_k(s)]
        slots += [("v", s) for s in range(len(self.plan.order)) if self.plan.owns_v(s)]
        #: (k or v, step) → tensors [B, G, d], one for each position.
        self.given: dict[tuple[str, int], list[Tensor]] = {slot: [] for slot in slots}
        #: window → the first position that is still kept.
        self.first = {window: 0 for window in self.plan.windows if window is not None}
        #: A vector [B, width] for each position.
        self.vectors: list[Tensor] = []
        #: The first position whose vector is still kept.
        self.first_vector = 0

    def kept(self, window: int) -> int:
        """How many tokens a slot of a window keeps."""
        kept = window + self.max_rollback
        return kept if self.max_length is None else min(kept, self.max_length)

    def copy(self) -> Model:
        """The same, apart."""
        twin = Model(self.plan, self.batch_size, self.max_rollback, self.max_length)
        twin.length, twin.furthest, twin.first = self.length, self.furthest, dict(self.first)
        twin.given = {slot: list(tokens) for slot, tokens in self.given.items()}
        twin.vectors, twin.first_vector = list(self.vectors), self.first_vector
        return twin

    def advance(self, num_new: int) -> None:
        """Tokens were given to every slot."""
        self.length += num_new
        self.furthest = max(self.furthest, self.length)
        for window, first in self.first.items():
            self.first[window] = max(first, self.length - self.kept(window))
        if self.plan.tail is not None:
            self.first_vector = max(self.first_vector, self.length - self.plan.tail.length - self.max_rollback)

    def needed(self, window: int | None, length: int) -> range:
        """Past positions that a token at position ``length`` attends to."""
        return range(0 if window is None else max(0, length - window + 1), length)

    def missing(self, length: int) -> str | None:
        """What no longer keeps every token that is needed at ``length``."""
        for window, first in self.first.items():
            if self.needed(window, length) and first > self.needed(window, length)[0]:
                return "a slot of window"
        tail = self.plan.tail
        if tail is not None and length > 0 and self.first_vector > max(0, length - tail.length):
            return "the tail"
        return None

    def crop(self, length: int) -> None:
        """Forget tokens."""
        self.length = length
        self.given = {slot: tokens[:length] for slot, tokens in self.given.items()}
        self.first = {window: min(first, length) for window, first in self.first.items()}
        self.vectors, self.first_vector = self.vectors[:length], min(self.first_vector, length)


class CacheMachine(RuleBasedStateMachine):
    """Drives a cache and its model side by side."""

    @initialize(
        data=st.data(),
        num_steps=st.integers(1, 4),
        batch_size=st.integers(1, 3),
        max_length=st.none() | st.integers(6, 24),
        max_rollback=st.integers(0, 3),
        block_size=st.integers(1, 5),
        tail=st.none() | st.builds(Tail, st.integers(1, 3), st.just(2)),
    )
    def create(
        self,
        data: st.DataObject,
        num_steps: int,
        batch_size: int,
        max_length: int | None,
        max_rollback: int,
        block_size: int,
        tail: Tail | None,
    ) -> None:
        slots = data.draw(zoo.plans(num_steps), label="plan")
        plan = replace(Plan.borrowing(order=tuple(range(num_steps)), **slots), tail=tail)
        self.cache = new_cache(
            plan, batch_size, max_length=max_length, max_rollback=max_rollback, block_size=block_size
        )
        self.model = Model(plan, batch_size, max_rollback, max_length)
        self.counter = 0.0

    def fresh(self, num_new: int) -> Tensor:
        """Tokens that no slot was ever given: [B, G, T, d]."""
        tensor = numbered(self.model.batch_size, num_new, self.counter + 1)
        self.counter += tensor.numel()
        return tensor

    @rule(num_new=st.integers(1, 4))
    def forward(self, num_new: int) -> None:
        model, cache = self.model, self.cache
        if model.max_length is not None and model.length + num_new > model.max_length:
            with pytest.raises(CacheError, match="do not fit in a cache of max_length"):
                cache.positions(num_new)
            return
        assert cache.positions(num_new).tolist() == list(range(model.length, model.length + num_new))
        positions = {window: cache.key_positions(window, num_new).tolist() for window in set(model.plan.windows)}
        self.extend_tail(num_new)
        for step in range(len(model.plan.order)):
            new = {kind: self.fresh(num_new) if (kind, step) in model.given else None for kind in ("k", "v")}
            seen = dict(zip(("k", "v"), cache.append(step, new["k"], new["v"]), strict=True))
            for kind, tensor in new.items():
                if tensor is None:
                    assert seen[kind] is None
                    continue
                tokens = model.given[kind, step]
                tokens += list(tensor.unbind(2))
                self.compare(seen[kind], tokens, positions[model.plan.windows[step]], model.plan.windows[step], num_new)
        cache.advance(num_new)
        model.advance(num_new)

    def extend_tail(self, num_new: int) -> None:
        """The tail gives the last vectors before the new ones, and zeros where a sequence has none."""
        model, tail = self.model, self.model.plan.tail
        if tail is None:
            return
        new = vectors(model.batch_size, num_new, self.counter + 1)
        self.counter += new.numel()
        before = [torch.zeros(model.batch_size, tail.width, dtype=torch.float64)] * tail.length + model.vectors
        assert torch.equal(self.cache.extend_tail(new), torch.stack(before[-tail.length :], dim=1))
        model.vectors += list(new.unbind(1))

    def compare(
        self, seen: Tensor, tokens: list[Tensor], positions: list[int], window: int | None, num_new: int
    ) -> None:
        """What attention sees holds, where positions say, all tokens that may be attended to."""
        assert seen.shape == (self.model.batch_size, HEADS, len(positions), HEAD_DIM)
        assert seen.isfinite().all()
        visible = {*self.model.needed(window, len(tokens) - num_new), *range(len(tokens) - num_new, len(tokens))}
        at = {position: index for index, position in enumerate(positions) if position >= 0}
        assert len(at) == sum(position >= 0 for position in positions)
        assert visible <= at.keys()
        for position in visible:
            assert torch.equal(seen[:, :, at[position]], tokens[position])

    @precondition(lambda self: self.model.length > 0)
    @rule(data=st.data(), rollback=st.booleans())
    def crop(self, data: st.DataObject, rollback: bool) -> None:
        lowest = max(0, self.model.length - self.model.max_rollback) if rollback else 0
        length = data.draw(st.integers(lowest, self.model.length), label="length")
        missing = self.model.missing(length)
        if missing is None:
            self.cache.crop(length)
            self.model.crop(length)
        else:
            dropped = self.model.length - length
            assert self.model.furthest - length > self.model.max_rollback
            with pytest.raises(CacheError, match=f"cannot crop {dropped} tokens: {missing}"):
                self.cache.crop(length)

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.integers(0, self.model.batch_size - 1), min_size=1, max_size=3), label="rows")
        self.cache.reorder(torch.tensor(rows))
        self.model.batch_size = len(rows)
        self.model.given = {slot: [token[rows] for token in tokens] for slot, tokens in self.model.given.items()}
        self.model.vectors = [vector[rows] for vector in self.model.vectors]

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.model.reset()

    @rule(num_new=st.integers(1, 2), go_on_in_the_copy=st.booleans(), rollback=st.booleans())
    def copy(self, num_new: int, go_on_in_the_copy: bool, rollback: bool) -> None:
        """Both go on in turn: what is done to one may not show in the other."""
        others = [(self.cache, self.model), (self.cache.copy(), self.model.copy())]
        self.cache, self.model = others.pop(go_on_in_the_copy)
        for _ in range(3):
            self.forward(num_new)
            others.append((self.cache, self.model))
            self.cache, self.model = others.pop(0)
            self.sizes()
        if rollback and self.model.missing(max(0, self.model.length - 1)) is None:
            self.cache.crop(max(0, self.model.length - 1))
            self.cache, self.model = others[0]
        self.forward(num_new)

    @invariant()
    def sizes(self) -> None:
        model, cache = self.model, self.cache
        assert (cache.length, cache.batch_size) == (model.length, model.batch_size)
        per_token = HEADS * HEAD_DIM * 8 * model.batch_size
        tokens = 0
        for _, step in model.given:
            window = model.plan.windows[step]
            if model.max_length is not None:
                tokens += model.max_length if window is None else model.kept(window)
            elif window is None:
                tokens += model.length
            else:
                tokens += model.length - model.first[window]
        tail = model.plan.tail
        of_tail = 0 if tail is None else (tail.length + model.max_rollback) * tail.width * 8 * model.batch_size
        assert cache.nbytes == tokens * per_token + of_tail
        assert cache.allocated_nbytes >= cache.nbytes
        assert f"length={model.length}," in repr(cache)


CacheMachine.TestCase.settings = settings(max_examples=10 * settings().max_examples, stateful_step_count=16)
TestCache = CacheMachine.TestCase


# Sizes.


@pytest.mark.parametrize("block_size", [1, 4])
def test_growing_storage_grows_by_blocks(block_size: int) -> None:
    cache = new_cache(Plan.plain((0,)), block_size=block_size)
    per_token = 2 * HEADS * HEAD_DIM * 8
    assert (cache.nbytes, cache.allocated_nbytes) == (0, 0)
    for length in range(1, 11):
        storage = cache._keys[0].data_ptr()
        had_room = cache.allocated_nbytes >= length * per_token
        feed(cache, numbered(1, 1))
        assert cache.nbytes == length * per_token == length * cache.bytes_per_token
        assert cache.allocated_nbytes == -(-length // block_size) * block_size * per_token
        assert (cache._keys[0].data_ptr() == storage) == had_room


def test_fixed_storage_is_allocated_at_once_and_stays() -> None:
    cache = new_cache(windowed(None, 3), 2, max_length=6, max_rollback=1)
    per_token = 2 * 2 * HEADS * HEAD_DIM * 8
    assert cache.nbytes == cache.allocated_nbytes == (6 + 4) * per_token
    unwindowed = cache._keys[0].data_ptr()
    for _ in range(6):
        feed(cache, numbered(2, 1))
        assert cache.nbytes == cache.allocated_nbytes == (6 + 4) * per_token
        assert cache._keys[0].data_ptr() == unwindowed
    cache.reset()
    assert cache.nbytes == cache.allocated_nbytes == (6 + 4) * per_token


def test_a_window_never_takes_more_than_fixed_storage() -> None:
    cache = new_cache(windowed(100), max_length=5, max_rollback=7)
    assert cache.allocated_nbytes == 5 * cache.bytes_per_token


def test_windows_bound_what_is_kept() -> None:
    cache = new_cache(windowed(3), max_rollback=2)
    for length in range(1, 9):
        feed(cache, numbered(1, 1))
        assert cache.nbytes == min(length, 5) * cache.bytes_per_token
        assert cache.allocated_nbytes == cache.nbytes
        # What was dropped is not kept alive behind a view.
        assert cache._keys[0].untyped_storage().nbytes() == cache._keys[0].nbytes


@pytest.mark.parametrize("dtype", zoo.DTYPES, ids=str)
def test_tokens_are_kept_in_the_cache_s_dtype(dtype: torch.dtype) -> None:
    cache = new_cache(Plan.plain((0, 1)), dtype=dtype)
    ((keys, values), _) = feed(cache, numbered(1, 2) / 7)
    assert keys is not None
    assert values is not None
    assert keys.dtype == values.dtype == dtype
    assert torch.equal(keys, (numbered(1, 2) / 7).to(dtype))
    assert cache.bytes_per_token == 2 * 2 * HEADS * HEAD_DIM * dtype.itemsize


@given(length=st.integers(1, 9), data=st.data())
def test_elements_by_hand(length: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(1, 5))
    options = data.draw(zoo.plans(num_steps))
    plan = Plan.borrowing(order=tuple(range(num_steps)), **options)
    slots = [*enumerate(options["k_slot"]), *enumerate(options["v_slot"])]
    kept = [min(length, options["windows"][step] or length) for step, owner in slots if step == owner]
    assert plan.elements(shape(num_steps), length) == sum(kept) * HEADS * HEAD_DIM
    assert plan.bytes_per_token(shape(num_steps), torch.bfloat16) == len(kept) * HEADS * HEAD_DIM * 2


# Copies.


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_cache_and_its_copy_know_nothing_of_each_other(max_length: int | None, window: int | None) -> None:
    cache = new_cache(windowed(window), max_length=max_length, max_rollback=2)
    start = numbered(1, 4)
    feed(cache, start)
    twin = cache.copy()
    feed(twin, numbered(1, 1, 100.0))
    assert (cache.length, twin.length) == (4, 5)
    feed(cache, numbered(1, 1, 200.0))
    ((keys, _),) = feed(twin, numbered(1, 1, 300.0))
    assert keys is not None
    expected = [start, numbered(1, 1, 100.0), numbered(1, 1, 300.0)]
    assert torch.equal(keys[:, :, -3:], torch.cat(expected, dim=2)[:, :, -3:])
    twin.crop(4)
    ((keys, _),) = feed(cache, numbered(1, 1, 400.0))
    assert keys is not None
    expected = [start, numbered(1, 1, 200.0), numbered(1, 1, 400.0)]
    assert torch.equal(keys[:, :, -3:], torch.cat(expected, dim=2)[:, :, -3:])


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_a_copy_remembers_what_was_dropped_and_reset_forgets_it(max_length: int | None) -> None:
    cache = new_cache(windowed(3), max_length=max_length, max_rollback=1)
    feed(cache, numbered(1, 6))
    cache.crop(5)
    twin = cache.copy()
    # 4 tokens were kept, 2 … 5: a token at position 3 would look back at 1.
    for each in (twin, cache):
        with pytest.raises(CacheError, match="cannot crop 2 tokens"):
            each.crop(3)
    cache.reset()
    feed(cache, numbered(1, 4))
    cache.crop(3)
    assert (cache.length, twin.length) == (3, 5)


# Gradients.


@pytest.mark.parametrize("max_length", [None, 6], ids=["growing", "fixed"])
@pytest.mark.parametrize("window", [None, 4])
def test_gradients_reach_what_was_appended(max_length: int | None, window: int | None) -> None:
    cache = new_cache(windowed(window), max_length=max_length, block_size=4)
    first, second = numbered(1, 2).requires_grad_(), numbered(1, 2, 50.0).requires_grad_()
    ((early, _),) = feed(cache, first, first.detach())
    ((keys, values),) = feed(cache, second, second.detach())
    assert early is not None
    assert keys is not None
    assert values is not None
    assert not values.requires_grad
    (keys[:, :, -4:] * numbered(1, 4)).sum().backward(retain_graph=True)
    assert first.grad is not None
    assert second.grad is not None
    assert torch.equal(first.grad, numbered(1, 4)[:, :, :2])
    assert torch.equal(second.grad, numbered(1, 4)[:, :, 2:])
    # What an earlier call returned is still what it was, and its graph is whole.
    assert torch.equal(early[:, :, -2:], first)
    early.sum().backward()


def test_nothing_is_kept_in_a_graph_without_gradients() -> None:
    cache = new_cache(Plan.plain((0,)), max_length=4)
    with torch.no_grad():
        ((keys, _),) = feed(cache, numbered(1, 2).requires_grad_())
    assert keys is not None
    assert not keys.requires_grad


@pytest.mark.parametrize("max_length", [None, 6], ids=["growing", "fixed"])
def test_what_is_in_a_graph_can_be_cropped_and_goes_on(max_length: int | None) -> None:
    cache = new_cache(Plan.plain((0,)), max_length=max_length)
    first = numbered(1, 3).requires_grad_()
    feed(cache, first)
    cache.crop(2)
    ((keys, _),) = feed(cache, numbered(1, 1, 90.0))
    assert keys is not None
    keys.sum().backward()
    assert first.grad is not None
    assert first.grad[:, :, :2].eq(1).all()
    assert first.grad[:, :, 2].eq(0).all()


@pytest.mark.parametrize("max_length", [None, 8], ids=["growing", "fixed"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("then", ["append", "crop", "reorder", "copy", "reset"])
def test_a_cache_filled_in_inference_mode_can_be_used_outside(
    max_length: int | None, window: int | None, then: str
) -> None:
    cache = new_cache(windowed(window), max_length=max_length, max_rollback=2)
    with torch.inference_mode():
        feed(cache, numbered(1, 3))
    if then == "crop":
        cache.crop(2)
    elif then == "reorder":
        cache.reorder(torch.tensor([0]))
    elif then == "copy":
        cache = cache.copy()
    elif then == "reset":
        cache.reset()
        with torch.inference_mode():
            feed(cache, numbered(1, 3))
    kept = cache.length
    ((keys, _),) = feed(cache, numbered(1, 1, 90.0))
    expected = torch.cat([numbered(1, 3)[:, :, :kept], numbered(1, 1, 90.0)], dim=2)
    assert keys is not None
    assert torch.equal(keys[:, :, -3:], expected[:, :, -3:])


# Errors.


def test_arguments_out_of_range() -> None:
    plan = Plan.plain((0,))
    with pytest.raises(CacheError, match="batch_size is 0; it must be at least 1"):
        new_cache(plan, 0)
    with pytest.raises(CacheError, match="max_length is 0; it must be at least 1"):
        new_cache(plan, max_length=0)
    with pytest.raises(CacheError, match="max_rollback is -1; it must not be negative"):
        new_cache(plan, max_rollback=-1)
    with pytest.raises(CacheError, match="block_size is 0; it must be at least 1"):
        new_cache(plan, block_size=0)


def test_overflow_of_fixed_storage() -> None:
    cache = new_cache(Plan.plain((0,)), max_length=4)
    feed(cache, numbered(1, 3))
    with pytest.raises(CacheError, match=r"2 new tokens after 3 do not fit .* make it at least 5, or use a growing"):
        cache.positions(2)
    feed(cache, numbered(1, 1))
    assert cache.length == 4
    with pytest.raises(CacheError, match="1 new tokens after 4 do not fit"):
        cache.positions(1)


def test_slots_that_are_not_there() -> None:
    cache = new_cache(Plan.borrowing(order=(0, 1), k_slot=(0, 0), v_slot=(0, 1), windows=(None, None)))
    tokens = numbered(1, 1)
    with pytest.raises(CacheError, match="there is no slot 1 of keys"):
        cache.append(1, tokens, tokens)
    with pytest.raises(CacheError, match="there is no slot 2 of values"):
        cache.append(2, None, tokens)


@pytest.mark.parametrize("max_length", [None, 6], ids=["growing", "fixed"])
@pytest.mark.parametrize("window", [None, 2])
def test_a_batch_of_another_size(max_length: int | None, window: int | None) -> None:
    cache = new_cache(windowed(window), 2, max_length=max_length)
    with pytest.raises(CacheError, match="a batch of 1 rows does not fit in a cache of 2"):
        cache.append(0, numbered(1, 1), numbered(1, 1))


def test_crop_out_of_range() -> None:
    cache = new_cache(Plan.plain((0,)))
    feed(cache, numbered(1, 3))
    for length in (-1, 4):
        with pytest.raises(CacheError, match=f"cannot crop to {length} tokens: the cache holds 3"):
            cache.crop(length)
    assert cache.length == 3


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_crop_beyond_a_window(max_length: int | None) -> None:
    cache = new_cache(windowed(None, 3), max_length=max_length, max_rollback=1)
    feed(cache, numbered(1, 6))
    # 4 tokens are kept, 2 … 5; a token at position 4 looks back at 2 and 3.
    with pytest.raises(CacheError, match=r"cannot crop 3 tokens: a slot of window 3 .* max_rollback=3 or more"):
        cache.crop(3)
    assert cache.length == 6
    cache.crop(4)
    # What was dropped before does not come back.
    with pytest.raises(CacheError, match="cannot crop 1 tokens"):
        cache.crop(3)
    feed(cache, numbered(1, 2, 50.0))
    cache.crop(5)
    assert cache.length == 5


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
@pytest.mark.parametrize("window", [1, 3])
def test_crop_to_nothing_needs_nothing(max_length: int | None, window: int) -> None:
    cache = new_cache(windowed(window), max_length=max_length)
    feed(cache, numbered(1, 7))
    cache.crop(0)
    assert cache.length == 0
    positions = cache.key_positions(window, 2).tolist()
    ((keys, _),) = feed(cache, numbered(1, 2, 50.0))
    assert keys is not None
    assert positions[-2:] == [0, 1]
    assert keys.size(2) == len(positions)
    assert torch.equal(keys[:, :, -2:], numbered(1, 2, 50.0))
    # What was dropped before has no bearing on what came after.
    cache.crop(1)
    ((keys, _),) = feed(cache, numbered(1, 1, 90.0))
    assert keys is not None
    expected = torch.cat([numbered(1, 2, 50.0)[:, :, :1], numbered(1, 1, 90.0)], dim=2)
    visible = min(2, window)
    assert torch.equal(keys[:, :, -visible:], expected[:, :, -visible:])


@pytest.mark.parametrize("rows", [[2], [-1], [], [[0, 1]]], ids=str)
def test_rows_out_of_range(rows: list[Any]) -> None:
    cache = new_cache(Plan.plain((0,)), 2)
    feed(cache, numbered(2, 1))
    with pytest.raises(CacheError, match="rows must be a vector of numbers from 0 to 1"):
        cache.reorder(torch.tensor(rows, dtype=torch.long))
    assert cache.batch_size == 2


# Tails.


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_crop_beyond_what_the_tail_kept(max_length: int | None) -> None:
    cache = new_cache(with_tail(2, None), max_length=max_length, max_rollback=1)

    def give(num_new: int, first: float) -> Tensor:
        past = cache.extend_tail(vectors(1, num_new, first))
        feed(cache, numbered(1, num_new))
        return past

    assert not give(6, 1.0).any()
    # 3 vectors are kept, 3 … 5; a token at position 4 is given 2 and 3.
    with pytest.raises(CacheError, match=r"cannot crop 2 tokens: the tail has dropped .* with max_rollback=2 or more"):
        cache.crop(4)
    assert cache.length == 6
    cache.crop(5)
    # What was dropped before does not come back, even if no more than max_rollback tokens are taken back at a time.
    with pytest.raises(CacheError, match="cannot crop 1 tokens: the tail has dropped"):
        cache.crop(4)
    assert torch.equal(give(1, 50.0), vectors(1, 6)[:, 3:5])
    assert torch.equal(give(1, 60.0), torch.cat([vectors(1, 6)[:, 4:5], vectors(1, 1, 50.0)], dim=1))
    # The first token needs none before it.
    cache.crop(0)
    assert not give(1, 70.0).any()


def test_few_tokens_are_kept_whole_by_a_tail() -> None:
    cache = new_cache(with_tail(3, None))
    cache.extend_tail(vectors(1, 2))
    feed(cache, numbered(1, 2))
    cache.crop(1)
    past = cache.extend_tail(vectors(1, 1, 9.0))
    assert torch.equal(past, torch.cat([torch.zeros(1, 2, 2), vectors(1, 2)[:, :1]], dim=1))


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_bytes_of_a_tail(max_length: int | None) -> None:
    plan = with_tail(2, None, width=5)
    assert plan.bytes_per_token(shape(1), torch.float64) == windowed(None).bytes_per_token(shape(1), torch.float64)
    assert plan.bytes_per_sequence(torch.float32) == 2 * 5 * 4
    assert windowed(None).bytes_per_sequence(torch.float32) == 0
    with_a_tail, without = (
        new_cache(one, 3, max_length=max_length, max_rollback=4, dtype=torch.float32) for one in (plan, windowed(None))
    )
    for length in (0, 4):
        assert with_a_tail.nbytes - without.nbytes == 3 * (2 + 4) * 5 * 4, length
        assert with_a_tail.allocated_nbytes - without.allocated_nbytes == 3 * (2 + 4) * 5 * 4
        for cache in (with_a_tail, without):
            feed(cache, numbered(3, 4).float())


@pytest.mark.parametrize("max_length", [None, 9], ids=["growing", "fixed"])
def test_gradients_reach_what_the_tail_gives(max_length: int | None) -> None:
    cache = new_cache(with_tail(1, None), max_length=max_length)
    new = vectors(1, 3).requires_grad_()
    cache.extend_tail(new)
    feed(cache, numbered(1, 3))
    (grad,) = torch.autograd.grad(cache.extend_tail(vectors(1, 1)).sum(), new)
    assert grad[0].tolist() == [[0, 0], [0, 0], [1, 1]]
    cache.reset()
    assert not cache.extend_tail(vectors(1, 1)).requires_grad


def test_tails_that_cannot_be() -> None:
    with pytest.raises(CacheError, match="this cache's plan has no tail"):
        new_cache(windowed(None)).extend_tail(vectors(1, 1))
    with pytest.raises(CacheError, match="a batch of 3 rows does not fit in a cache of 2"):
        new_cache(with_tail(1, None), 2).extend_tail(vectors(3, 1))
    for length, width in ((0, 2), (1, 0)):
        with pytest.raises(MixerError, match=f"the tail keeps {length} vectors of {width}; both must be ≥ 1"):
            with_tail(length, None, width=width)


# Plans.


@pytest.mark.parametrize(
    ("k_slot", "v_slot", "windows", "message"),
    [
        ((0,), (0, 1), (None, None), "k_slot has 1 entries for 2 steps"),
        ((0, 1), (0, 1, 2), (None, None), "v_slot has 3 entries for 2 steps"),
        ((0, 1), (0, 1), (None,), "windows has 1 entries for 2 steps"),
        ((1, 1), (0, 1), (None, None), "step 0 reads k_slot 1; it must be its own or an earlier one's"),
        ((0, 1), (0, -1), (None, None), "step 1 reads v_slot -1; it must be its own or an earlier one's"),
        ((0, 0), (0, 0), (0, None), "the window of slot 0 is 0; it must be at least 1"),
        ((0, 1), (0, 0), (2, None), "step 1 reads keys and values of different windows"),
    ],
)
def test_plans_that_cannot_be(
    k_slot: tuple[int, ...], v_slot: tuple[int, ...], windows: tuple[int | None, ...], message: str
) -> None:
    with pytest.raises(MixerError, match=message):
        Plan.borrowing(order=(0, 1), k_slot=k_slot, v_slot=v_slot, windows=windows)


def test_a_slot_must_be_owned_by_the_step_that_it_names() -> None:
    with pytest.raises(MixerError, match="step 2 reads k_slot 1, which step 1 does not own"):
        Plan.borrowing(order=(0, 1, 2), k_slot=(0, 0, 1), v_slot=(0, 1, 2), windows=(None,) * 3)


def test_windows_of_steps_that_own_nothing_are_ignored() -> None:
    plan = Plan.borrowing(order=(0, 1), k_slot=(0, 0), v_slot=(0, 0), windows=(3, 7))
    assert [plan.window(step) for step in range(2)] == [3, 3]
    assert plan.elements(shape(2), length=10) == 2 * 3 * HEADS * HEAD_DIM


def test_a_plain_plan() -> None:
    plan = Plan.plain((0, 1, 1, 2))
    assert plan == Plan.borrowing(order=(0, 1, 1, 2), k_slot=(0, 1, 2, 3), v_slot=(0, 1, 2, 3), windows=(None,) * 4)
    assert all(plan.owns_k(step) and plan.owns_v(step) for step in range(4))


@given(
    windows=st.lists(st.sampled_from([None, 1, 3]), min_size=1, max_size=3),
    doings=st.lists(st.sampled_from(["append", "crop", "reorder", "reset"]), max_size=12),
    inference=st.booleans(),
)
def test_fixed_storage_stays_where_it_is(windows: list[int | None], doings: list[str], inference: bool) -> None:
    with torch.inference_mode(mode=inference):
        cache = new_cache(with_tail(1, *windows), 2, max_length=24, max_rollback=4)
        twin = cache.copy()
    addresses = [[data.data_ptr() for data in _tensors(one)] for one in (cache, twin)]
    for one, before in zip((cache, twin), addresses, strict=True):
        for doing in doings:
            # Whatever mode it was made in.
            with torch.inference_mode(mode=not inference):
                if doing == "append":
                    one.extend_tail(vectors(2, 2))
                    feed(one, numbered(2, 2))
                elif doing == "crop":
                    one.crop(max(0, one.length - 1))
                elif doing == "reorder":
                    one.reorder(torch.tensor([1, 0]))
                else:
                    one.reset()
        assert [data.data_ptr() for data in _tensors(one)] == before
        assert all(data._dynamo_static_input_type for data in _tensors(one))  # type: ignore[attr-defined]
    assert not {*addresses[0]} & {*addresses[1]}


def test_gradients_leave_no_trace_in_fixed_storage_that_is_reset() -> None:
    cache = new_cache(with_tail(1, None, 2), max_length=8)
    cache.extend_tail(vectors(1, 3).requires_grad_())
    feed(cache, numbered(1, 3).requires_grad_())
    cache.reset()
    assert not any(data.requires_grad for data in _tensors(cache))
    assert all(data._dynamo_static_input_type for data in _tensors(cache))  # type: ignore[attr-defined]
    feed(cache, numbered(1, 3))


def _tensors(cache: KVCache) -> list[Tensor]:
    assert isinstance(cache._length, Tensor)
    tail = [] if cache._tail is None else [cache._tail.data]
    return [cache._length, *cache._keys.values(), *cache._values.values(), *tail]
