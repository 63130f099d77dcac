"""The last vectors of each sequence, which a cache keeps for a mixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from caches import feed, new_cache, numbered, shape, vectors, windowed, with_tail
from mixerzoo.errors import CacheError, MixerError


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
