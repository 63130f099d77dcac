"""Checkpoints to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import checkpoint_in


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [checkpoint_in(tmp_path_factory.mktemp(mixer), mixer) for mixer in ("residual", "depth_attention")]
