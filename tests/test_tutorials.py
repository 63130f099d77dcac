"""Tutorials are notebooks: they parse, and they run from top to bottom."""

from __future__ import annotations

import os
import re
import resource
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
#: Of CPU on which a newcomer may wait: three minutes on two cores.
MOST_SECONDS = 360
cells = re.compile(r"^```\{code-cell\}[^\n]*\n(?:(?::[^\n]*\n)+\n?)?(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_of(path: Path) -> list[str]:
    """Its cells."""
    return cells.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_whose_cells_are_python_or_bash(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\njupytext:\n")
    assert "  name: python3\n---\n\n# " in text
    assert len(code_of(path)) == text.count("```{code-cell}") > 0
    for code in code_of(path):
        if not code.startswith(("%%bash\n", "%%writefile ")):
            compile(code, path.name, "exec")


def test_tutorials_are_in_the_contents() -> None:
    index = (Path(__file__).parents[1] / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^tutorials/([\w-]+)$", index, re.MULTILINE) == [
        "first-steps", "compare", "write", "inspect", "pretrained",
    ]  # fmt: skip
    assert {path.stem for path in TUTORIALS} == set(re.findall(r"^tutorials/([\w-]+)$", index, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("nbclient", "ipykernel"))), reason="needs the extra `docs`")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_tutorial_runs_in_a_few_minutes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in code_of(path)])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(book, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_SECONDS
    outputs = [output for cell in book.cells for output in cell.outputs]
    # Bold is shown; what moves a cursor is for a terminal alone.
    assert not any(re.search(r"\x1b\[[\d;]*[^\d;m]|\r", output.get("text", "")) for output in outputs)
