"""Plans: what they say of slots and windows, and those that cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from caches import HEAD_DIM, HEADS, feed, new_cache, numbered, shape, vectors, with_tail
from mixerzoo import KVCache, Plan
from mixerzoo.errors import MixerError


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
