"""The conformance kit blames no mixer that is right, however unusual: run this with `pytest -m slow`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mixerzoo.testing import parametrize_with_checks
from right import RIGHT
from right_options import RIGHT_OPTIONS


@pytest.mark.slow
@parametrize_with_checks([*RIGHT, *RIGHT_OPTIONS])
def test_right_mixer_is_not_blamed(check: Callable[[], None]) -> None:
    check()
