"""Draws the cases that a check is held on, once for all checks that draw as many."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from hypothesis import HealthCheck, Phase, given, seed, settings

from mixerzoo.mixer import Mixer
from mixerzoo.testing.case import Case
from mixerzoo.testing.drawn_options import Overrides
from mixerzoo.testing.strategies import cases

#: Of all draws. Without it they would hang on the source text of `_draw`.
_SEED = 2


class _Draws(NamedTuple):
    """What a check found that held on all of it.

    Attributes:
        cases: in the order in which they were drawn.
        refusals: the words in which the mixer refused others.
    """

    cases: tuple[Case, ...]
    refusals: tuple[str, ...]


#: Mixer → number of examples → what is drawn, as it is without `overrides`.
_known: WeakKeyDictionary[type[Mixer], dict[int, _Draws]] = WeakKeyDictionary()


def draw_and_hold(
    mixer: type[Mixer],
    overrides: Overrides | None,
    examples: int,
    shrinks: bool,
    hold: Callable[[Case], None],
    drawn: list[Case],
    refusals: list[str],
) -> None:
    """Hold a check on drawn cases. All draws are the same, so those of an earlier check are taken again.

    Args:
        mixer: the mixer under test.
        overrides: strategies for some of its options.
        examples: how many cases.
        shrinks: whether Hypothesis looks for the smallest case that fails.
        hold: raises where the check fails.
        drawn: gets the cases.
        refusals: gets the words in which the mixer refused what was drawn.

    Raises:
        Exception: what `hold` raises.
    """

    def draw() -> None:
        @seed(_SEED)
        @_settings(examples, shrinks)
        @given(case=cases(mixer, overrides, refusals.append))
        def hold_drawn(case: Case) -> None:
            drawn.append(case)
            hold(case)

        hold_drawn()

    known = {} if overrides else _known.setdefault(mixer, {})
    if examples not in known:
        draw()
        known[examples] = _Draws(tuple(drawn), tuple(refusals))
        return
    try:
        for case in known[examples].cases:
            drawn.append(case)
            hold(case)
    except Exception:
        if shrinks:
            drawn.clear()
            draw()
        # Also where no time is left to meet it again.
        raise
    refusals += known[examples].refusals


def _settings(examples: int, shrinks: bool) -> settings:
    """How Hypothesis draws. Every draw of a run is the same run: no database, no clock."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
        print_blob=False,
        report_multiple_bugs=False,
    )
