"""A cache of a test's own, and documents to prepare."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora import DOCUMENTS, save


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return save(tmp_path / "corpus", DOCUMENTS)
