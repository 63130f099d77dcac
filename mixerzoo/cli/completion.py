"""What a shell completes: names of mixers and of recipes, found without importing a plugin or PyTorch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from mixerzoo.files import recipes_at_hand


def complete_mixer(incomplete: str) -> list[str]:
    """Installed mixers whose names begin so.

    Args:
        incomplete: what is typed.
    """
    points = entry_points(group="mixerzoo")
    return sorted({name for point in points for name in names_of(point) if name.startswith(incomplete)})


def complete_mixers(incomplete: str) -> list[str]:
    """The same for the last of names with commas between.

    Args:
        incomplete: what is typed, e.g. ``"residual,depth_"``.
    """
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete_mixer(last)]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes that come with mixerzoo and whose names begin so; where there is none, the shell offers files.

    Args:
        incomplete: what is typed.
    """
    return [name for name in recipes_at_hand() if name.startswith(incomplete)]


def names_of(point: EntryPoint) -> list[str]:
    """Names of the mixers that a plugin's source defines: classes with a literal ``name`` and a ``card``.

    Args:
        point: names the plugin's module.

    Returns:
        The names; the entry point's own where the source shows none or cannot be read. (`mixerzoo list`
        says what is wrong with such a plugin.)
    """
    try:
        found = [name for path in _sources(point.value) for name in _named(path)]
    except (ImportError, OSError, SyntaxError, ValueError):
        found = []
    return found or [point.name]


def _sources(module: str) -> list[Path]:
    """Files of a module, of a package all; only what it lies in is imported."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return []
    path = Path(spec.origin)
    return sorted(path.parent.rglob("*.py")) if spec.submodule_search_locations else [path]


def _named(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_bytes()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = {}
        for line in node.body:
            if isinstance(line, ast.Assign | ast.AnnAssign):
                target = line.targets[0] if isinstance(line, ast.Assign) else line.target
                if isinstance(target, ast.Name):
                    values[target.id] = line.value
        name = values.get("name")
        if "card" in values and isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value
