"""Every built-in mixer holds every clause of the conformance kit: run this with `pytest -m slow`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import zoo
from mixerzoo.testing import parametrize_with_checks

MIXERS = [zoo.mixer_class(name) for name in zoo.REGISTERED]


@pytest.mark.slow
@parametrize_with_checks(MIXERS, references={mixer: zoo.reference(mixer.name) for mixer in MIXERS})
def test_conformance(check: Callable[[], None]) -> None:
    check()
