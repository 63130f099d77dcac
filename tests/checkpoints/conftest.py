"""A saved checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from mixerzoo import save_checkpoint
from zoo import ZooCase


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    save_checkpoint(zoo.make(ZooCase("denseformer"), dtype=torch.float32), tmp_path)
    return tmp_path
