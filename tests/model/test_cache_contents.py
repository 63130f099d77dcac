"""Copies of a cache, gradients through it, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caches import feed, new_cache, numbered, windowed
from mixerzoo import Plan
from mixerzoo.errors import CacheError

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
