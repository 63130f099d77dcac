"""The conformance kit blames no mixer that is right, however unusual: run this with `pytest -m slow`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mixerzoo.testing import parametrize_with_checks
from right import RIGHT


@pytest.mark.slow
@parametrize_with_checks(RIGHT)
def test_right_mixer_is_not_blamed(check: Callable[[], None]) -> None:
    check()
