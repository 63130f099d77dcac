"""What clause 4.4 counts: arithmetic, and nothing that moves numbers only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo.testing.count import FlopCounter
from right import ReadsIds

IDS = torch.tensor([2, 0])
ROWS = IDS[:, None].expand(-1, 4)


def counted(operation: Callable[[Tensor], Tensor]) -> int:
    """FLOPs of an operation on a table [5, 4]."""
    table = torch.arange(20.0).view(5, 4)
    with FlopCounter() as counter, torch.no_grad():
        operation(table)
    return counter.flops


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.embedding(IDS, x),
        lambda x: F.embedding(IDS, x, padding_idx=0),
        lambda x: x.flip(0),
        lambda x: x.roll(1, 0),
        lambda x: x.repeat(3, 1),
        lambda x: x.repeat_interleave(2, 0),
        lambda x: F.pad(x, (1, 0)),
        lambda x: x.masked_fill(x.new_ones(5, 4, dtype=torch.bool), 0.0),
        lambda x: x.tril(),
        lambda x: x.triu(),
        lambda x: x.movedim(0, 1).narrow(0, 1, 2),
        lambda x: x.diagonal().unfold(0, 2, 1),
        lambda x: x.clone().scatter(0, ROWS, x[:2]),
        lambda x: x.index_put((IDS,), x[:2]),
        lambda x: x.new_full((5, 4), 2.0),
    ],
)
def test_moves_are_free(move: Callable[[Tensor], Tensor]) -> None:
    assert counted(move) == 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x + 1,
        lambda x: x.index_put((IDS,), x[:2], accumulate=True),
        lambda x: x.scatter(0, ROWS, 2.0, reduce="multiply"),
        lambda x: x.scatter_add(0, ROWS, x[:2]),
        lambda x: x.index_add(0, IDS, x[:2]),
        lambda x: F.embedding_bag(IDS[None], x, mode="sum"),
    ],
)
def test_what_adds_is_counted(operation: Callable[[Tensor], Tensor]) -> None:
    assert counted(operation) > 0


@pytest.mark.parametrize("check", ["flops", "accounts_at_size"])
def test_the_rows_of_a_table_that_nobody_looks_up_are_not_counted(check: str) -> None:
    result = run_check(CHECKS[check], ReadsIds)
    assert result.ok, failure_text(result)
