"""What all tests of benchmarks share."""

import pytest

from mixerzoo.benchmark import ceilings


@pytest.fixture(autouse=True)
def _little_to_measure_the_device_with(monkeypatch):
    monkeypatch.setitem(ceilings._SIZES, "cpu", (64, 2**12))
