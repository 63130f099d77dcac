"""What importing costs, and who may import whom."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mixerzoo
import mixerzoo_plugins

ROOT = Path(__file__).parents[1]
LIBRARY = Path(mixerzoo.__file__).parent
PLUGINS = sorted(Path(mixerzoo_plugins.__file__).parent.rglob("*.py"))
HEAVY = ("torch", "transformers", "pydantic", "yaml", "numpy", "datasets", "typer", "rich", "pytest", "hypothesis")


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def imports_of(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every import of a file, wherever it stands: the module, and the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield str(node.module), tuple(alias.name for alias in node.names)


def test_importing_mixerzoo_costs_nothing() -> None:
    assert loaded_after("import mixerzoo; dir(mixerzoo)").isdisjoint(HEAVY)


def test_finding_and_building_mixers_needs_no_transformers() -> None:
    loaded = loaded_after("import mixerzoo; mixerzoo.load_registry(); mixerzoo.build; mixerzoo.load_checkpoint")
    assert "torch" in loaded
    assert loaded.isdisjoint({"transformers", "datasets", "pytest", "hypothesis"})


@pytest.mark.parametrize("name", mixerzoo.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(mixerzoo, name) is not None
    assert name in dir(mixerzoo)
    assert getattr(mixerzoo, name) is getattr(mixerzoo, name)


def test_public_names_are_listed_once() -> None:
    assert len(set(mixerzoo.__all__)) == len(mixerzoo.__all__)
    namespace: dict[str, object] = {}
    exec("from mixerzoo import *", namespace)
    assert set(mixerzoo.__all__) <= namespace.keys()


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'mixerzoo' has no attribute 'Mixr'"):
        mixerzoo.Mixr  # noqa: B018


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_plugins_use_the_public_interface_only(path: Path) -> None:
    allowed = {"__future__", "mixerzoo", "torch", "pydantic", *sys.stdlib_module_names}
    for module, names in imports_of(path):
        if path.parent.name != "mixerzoo_plugins" and module.startswith(f"mixerzoo_plugins.{path.parent.name}."):
            continue  # files of one plugin
        assert module.partition(".")[0] in allowed, f"{path.name} imports {module}"
        if module.partition(".")[0] == "mixerzoo":
            assert module == "mixerzoo", f"{path.name} imports {module}; a plugin may only use mixerzoo itself"
            assert set(names) <= set(mixerzoo.__all__), f"{path.name} imports what is not public"
            assert names, f"{path.name}: import the names"


def test_there_are_plugins() -> None:
    assert {"residual", "denseformer", "attn_res", "depth_attention"} <= {path.stem for path in PLUGINS}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_does_not_know_its_plugins(path: Path) -> None:
    for module, _ in imports_of(path):
        assert not module.startswith("mixerzoo_plugins")


def _rooms() -> set[str]:
    """Folders and modules of the library, but for what every package has."""
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    return folders | {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "__main__"}


def test_the_map_of_the_house_shows_every_room_on_its_floor() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    house, beside, *_ = re.findall(r"^```text\n(.*?)^```", page.partition("## The house")[2], re.MULTILINE | re.DOTALL)
    floors = [set(re.findall(r"│ ([\w]+)(?:/|\.py) ", floor)) for floor in house.split("▼")]
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = [{name.strip().removeprefix("mixerzoo.") for name in layer.split("|")} for layer in contract["layers"]]
    assert floors == layers
    assert set.union(*floors) == _rooms()
    for folder in re.findall(r"│ ([\w/]+)/ ", beside):
        assert (ROOT / folder).is_dir(), folder


def test_tests_lie_in_the_rooms_of_what_they_test() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - {"plugins"} <= _rooms()


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_every_room_says_what_it_is_for(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said is not None
    assert said.partition("\n")[0].endswith(".")
