"""docs/conformance.md and docs/writing-a-mixer.md say what the kit and the example plugin are."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import zoo
from mixerzoo import Mixer
from mixerzoo.testing import CHECKS, Result, checks_for, failure_text, run_check
from mixerzoo.testing.runner import EXAMPLES

DOCS = Path(__file__).parents[2] / "docs"
CONFORMANCE = (DOCS / "conformance.md").read_text(encoding="utf-8")
TUTORIAL = (DOCS / "writing-a-mixer.md").read_text(encoding="utf-8")
PLUGIN = DOCS / "example-plugin"
MODULE = "src/mixerzoo_recall/__init__.py"


def clauses() -> list[tuple[str, str]]:
    """Number and check of each row of the page's tables."""
    return re.findall(r"^\| (\d+\.\d+) \| `(\w+)` \| .+\. \| .+ \|$", CONFORMANCE, re.MULTILINE)


def key(clause: tuple[str, str]) -> list[int]:
    return [int(part) for part in clause[0].split(".")]


def test_every_check_is_a_clause_and_every_clause_a_check() -> None:
    assert sorted(clauses(), key=key) == sorted(((c.clause, c.name) for c in CHECKS.values()), key=key)


def test_clauses_are_numbered_in_order_without_gaps_under_their_chapter() -> None:
    assert clauses() == sorted(clauses(), key=key)
    for chapter in re.split(r"^### ", CONFORMANCE.partition("## Profiles")[0], flags=re.MULTILINE)[1:]:
        number = chapter.partition(".")[0]
        rows = re.findall(r"^\| (\d+\.\d+) \|", chapter, re.MULTILINE)
        assert rows == [f"{number}.{i + 1}" for i in range(len(rows))]
        assert rows


def test_every_number_that_a_page_cites_is_a_clause() -> None:
    numbers = {check.clause for check in CHECKS.values()}
    assert set(re.findall(r"\((\d+\.\d)\)", TUTORIAL)) <= numbers
    cited = CONFORMANCE.split("## Profiles", 1)[1].split("## What a clause", 1)[0]
    assert set(re.findall(r"\b\d+\.\d+\b", cited)) == {c.clause for c in CHECKS.values() if c.cost != "cheap"}


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, cell by cell."""
    table = CONFORMANCE.split(f"{heading}\n", 1)[1].split("|---", 1)[1].split("\n\n", 1)[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]


def test_the_page_says_of_every_clause_what_it_costs_sees_and_cannot_see() -> None:
    found = rows("## What a clause costs and sees")
    assert [[number, *words] for number, _, *words in found] == [
        [check.clause, check.sizes, check.sees, check.blind] for check in CHECKS.values()
    ]
    quick = {check.clause for check in checks_for(Mixer)}
    assert {number for number, seconds, *_ in found if re.fullmatch(r"\d+\.\d", seconds)} == quick


def test_no_built_in_mixer_costs_more_than_the_page_may_say() -> None:
    found = {name.strip("`"): float(seconds) for name, seconds in rows("## What a mixer costs")}
    assert found.keys() == set(zoo.REGISTERED)
    assert found["depth_attention"] <= 70
    assert max(found.values()) <= 90


@pytest.mark.parametrize("profile", EXAMPLES)
def test_the_profiles_are_those_of_the_kit(profile) -> None:
    (row,) = re.findall(rf"^\| {profile} \| (.*?) \|", CONFORMANCE, re.MULTILINE)
    counts = re.sub(r"\d+\.\d+", "", row)
    assert [int(n) for n in re.findall(r"\d+", counts)] == [n for n in EXAMPLES[profile].values() if n]
    assert len(checks_for(None, profile)) == sum(EXAMPLES[profile][check.cost] > 0 for check in CHECKS.values())


def test_the_tutorial_shows_the_files_of_the_plugin() -> None:
    shown = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', TUTORIAL, re.MULTILINE | re.DOTALL))
    files = {
        path.relative_to(PLUGIN).as_posix(): path.read_text(encoding="utf-8")
        for path in PLUGIN.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.relative_to(PLUGIN).parts[0].startswith(".")
    }
    assert shown.keys() == files.keys()
    for name, text in files.items():
        assert shown[name] == text, name
    tree = TUTORIAL.split("```text\nexample-plugin\n", 1)[1].split("```", 1)[0]
    assert {line.split("── ")[1] for line in tree.splitlines()} == files.keys()


def broken(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Mixer]:
    """The mixer of the tutorial with one of its mistakes, imported under its own name."""
    change = re.findall(r"^```diff\n-(.*)\n\+(.*)\n```$", TUTORIAL, re.MULTILINE)[number]
    text = (PLUGIN / MODULE).read_text(encoding="utf-8")
    assert text.count(change[0] + "\n") == 1
    (folder / "module.py").write_text(text.replace(*change), encoding="utf-8")
    mixer: type[Mixer] = imported("mixerzoo_recall", folder / "module.py", monkeypatch).Recall
    return mixer


def imported(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module from a file, for the length of a test."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def assert_shown(result: Result, console: str) -> None:
    """The page shows the check's row and the first two lines of its failure."""
    check = result.check
    assert re.search(rf"^{check.clause} +{check.name} +{result.outcome} ", console, re.MULTILINE)
    # The figures depend on the processor's order of additions.
    for line in failure_text(result).splitlines()[:2] if result.outcome == "failed" else []:
        assert re.sub(r"[\d.e-]+", "#", line) in re.sub(r"[\d.e-]+", "#", console)


def test_what_the_tutorial_breaks_fails_as_it_says(tmp_path, monkeypatch) -> None:
    mixer = broken(0, tmp_path, monkeypatch)
    console = TUTORIAL.split("$ mixerzoo check recall --only", 2)[1].split("```", 1)[0]
    for name in ("causality", "cached_decoding", "card"):
        assert_shown(run_check(CHECKS[name], mixer), console)
    snippet = failure_text(run_check(CHECKS["causality"], mixer)).split("again:\n\n", 1)[1].strip()
    assert snippet in console


@pytest.mark.slow
def test_the_tutorial_s_other_method_is_known_by_its_reference_alone(tmp_path, monkeypatch) -> None:
    mixer = broken(1, tmp_path, monkeypatch)
    reference = imported("naive_recall", PLUGIN / "tests" / "naive_recall.py", monkeypatch).REFERENCE
    console = TUTORIAL.split("$ mixerzoo check recall --only", 2)[2].split("```", 1)[0]
    for name in ("cached_decoding", "reference_logits"):
        assert_shown(run_check(CHECKS[name], mixer, reference=reference), console)
    unaided = [check for check in checks_for(mixer) if not check.needs and check.name != "compiles"]
    assert all(run_check(check, mixer).ok for check in unaided)
