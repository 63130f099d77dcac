"""A run that is finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixerzoo.training.run import train
from runs import tiny_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed. Tests must leave it as it is."""
    place: Path = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(place / "cache"))
        train(tiny_recipe(), place / "run")
    return place / "run"
