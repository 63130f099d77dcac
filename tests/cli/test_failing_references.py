"""A reference whose module fails is an error of the call, and no verdict on a mixer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from command_line import error_of


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def", "SyntaxError"),
        ("missing", "NameError: name 'missing' is not defined"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_a_module_of_a_reference_that_fails(
    content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    said = error_of("check", "residual", "--reference", "failing:REFERENCE")
    assert f"failing cannot be imported: {words}" in said
    assert "cannot be imported: TypeError" in error_of("check", "residual", "--reference", ".naive:REFERENCE")
