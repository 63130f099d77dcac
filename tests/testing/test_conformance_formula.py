"""The formulas of cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixerzoo import load_registry
from mixerzoo.errors import MixerzooError
from mixerzoo.testing import CHECKS, failure_text, run_check
from mixerzoo.testing.formula import evaluate, is_formula, names_in
from right_options import Grouped

VALUES = {"L": 5, "G": 2, "d": 4, "D": 16, "e": 2, "group": 3}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("0", 0),
        ("2·L·G·d·e", 160),
        ("2·⌈L/group⌉·G·d·e", 64),
        ("⌊L/group⌋ − 1", 0),
        ("G²·(L·(L+1)/2 − 1)", 56),
        ("2·G³", 16),
        ("−L × 2", -10),
        ("max((L+1)·(D + 1), L·(D + 4))·e", 204),
        ("min(L, 3)", 3),
    ],
)
def test_a_formula_has_its_value(formula: str, value: float) -> None:
    assert is_formula(formula)
    assert evaluate(formula, VALUES) == value


@pytest.mark.parametrize("formula", ["banana", "2·L·x", "L/0", "foo(L)", "", "L·(", "L if D else d", "[L]", "'L'"])
def test_what_is_no_formula_of_these_letters_is_refused(formula: str) -> None:
    with pytest.raises(MixerzooError, match="is not a formula of L, G, d, D, e, group"):
        evaluate(formula, VALUES)


@pytest.mark.parametrize(
    "words", ["up to (L+1)·D·e", "2L", "not known", "D·e (pa: k·D·e)", "D or d", "the sum over the parts", ""]
)
def test_words_are_no_formula(words: str) -> None:
    assert not is_formula(words)


def test_names_of_a_formula() -> None:
    assert names_in("2·⌈L/group⌉·e") == {"ceil", "L", "group", "e"}


def test_most_cards_are_held_to_their_figures() -> None:
    cards = [e.mixer.card for e in load_registry().entries.values() if e.distribution == "mixerzoo"]
    for name, least in (("parameters", 7), ("in_flight_bytes", 10)):
        assert sum(is_formula(getattr(card, name)) for card in cards) >= least


class HalfGrouped(Grouped):
    """Its card forgets the values."""

    card = replace(Grouped.card, kv_bytes="⌈L/group⌉·G·d·e")


@pytest.mark.parametrize("check", ["kv_bytes", "accounts_at_size"])
def test_a_formula_is_compared_where_its_options_are_numbers(check: str) -> None:
    result = run_check(CHECKS[check], Grouped)
    assert result.ok, failure_text(result)
    wrong = run_check(CHECKS["kv_bytes"], HalfGrouped, shrink=False)
    assert wrong.message.startswith("the card says ⌈L/group⌉·G·d·e = ")
