"""The cache against a plain model of it: lists of the tokens that each slot was given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

import zoo
from caches import HEAD_DIM, HEADS, feed, new_cache, numbered, shape, vectors, windowed
from case import DEPTH
from mixerzoo import Plan, Tail
from mixerzoo.errors import CacheError


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

    @rule(num_new=st.integers(1, 4), data=st.data())
    def interrupt(self, num_new: int, data: st.DataObject) -> None:
        """A forward that does not come to its end leaves nothing behind."""
        model, cache = self.model, self.cache
        if model.max_length is not None and model.length + num_new > model.max_length:
            return
        if model.plan.tail is not None:
            cache.extend_tail(vectors(model.batch_size, num_new, -99.0))
        for step in range(data.draw(st.integers(0, len(model.plan.order)), label="steps")):
            k, v = (self.fresh(num_new) if (kind, step) in model.given else None for kind in ("k", "v"))
            cache.append(step, k, v)

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


def test_the_length_of_fixed_storage_is_looked_at_once_and_after_compiled_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = zoo.make(DEPTH)
    cache = decoder.new_cache(1, 16)
    looks: list[int] = []
    monkeypatch.setattr(Tensor, "__int__", lambda tensor: looks.append(tensor is cache._length) or tensor.item())
    compiled = torch.compile(decoder, fullgraph=True, dynamic=False, backend="eager")
    token = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        for step, length, expected in (
            (decoder, 1, 0), (decoder, 2, 0), (compiled, 3, 1), (compiled, 4, 1), (decoder, 5, 0), (compiled, 6, 1),
        ):  # fmt: skip
            step(token, cache)
            looks.clear()
            assert cache.length == length == cache._length.item()
            assert sum(looks) == expected
    cache.crop(4)
    twin = cache.copy()
    cache.reset()
    assert (cache.length, twin.length) == (0, 4)


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
