"""Numbers as figures and lists show them."""

from __future__ import annotations

import math

import pytest

from mixerzoo.describe import compared
from mixerzoo.experiments import figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.12345, "0.123"),
        (999.4, "999"),
        (999.6, "1k"),
        (-1500.0, "-1.5k"),
        (999_600.0, "1M"),
        (5e15, "5P"),
        (1.8e16, "18P"),
        (1e18, "1E"),
        (math.inf, "—"),
    ],
)
def test_numbers_of_axes(value: float, shown: str) -> None:
    assert figures.short(value) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (768, "768"), (98_304, "98.3K"), (999_999, "1M"), (1_234_567, "1.23M"), (2 * 10**9, "2G")],
)
def test_counts_take_five_characters_at_most(count: int, shown: str) -> None:
    assert compared.short(count) == shown
    assert len(shown) <= 5
