"""Modules and functions stay small enough to be read at once; their complexity is ruff's to watch (C901)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ("mixerzoo", "plugins", "tests")
    for path in (ROOT / room).rglob("*.py")
)


def too_long(source: str, name: str) -> set[str]:
    """The module, if it is too long, and those of its functions that are."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = {
        f"{name}:{function.name}"
        for function in functions
        if (function.end_lineno or 0) - function.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    return found | ({name} if len(source.splitlines()) > MOST_LINES else set())


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module):
    found = too_long((ROOT / module).read_text(encoding="utf-8"), module)
    assert not found


def test_what_is_too_long_is_found():
    body = "    x = 0\n"
    assert too_long("def f():\n" + body * 59, "m.py") == set()
    assert too_long("def f():\n" + body * 60, "m.py") == {"m.py:f"}
    assert too_long("x = 0\n" * 400, "m.py") == set()
    assert too_long("x = 0\n" * 401, "m.py") == {"m.py"}
