"""The conformance kit blames no mixer that is right, however unusual: run this with `pytest -m slow`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest

from mixerzoo.testing import parametrize_with_checks
from mixerzoo.testing.checks import process
from right import RIGHT
from right_options import RIGHT_OPTIONS


@pytest.mark.slow
@parametrize_with_checks([*RIGHT, *RIGHT_OPTIONS])
def test_right_mixer_is_not_blamed(check: Callable[[], None]) -> None:
    check()


def test_a_class_or_an_alias_of_a_container_is_none() -> None:
    module = ModuleType("somewhere")
    vars(module).update(Counter=Counter, Alias=list[int], held={"a": 1})
    assert process._Kept([module]).sizes() == {"somewhere.held": 1}
