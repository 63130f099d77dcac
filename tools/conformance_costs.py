"""Measures what the quick profile costs, and writes it into docs/conformance.md.

``python tools/conformance_costs.py [MIXER …]`` runs the kit on built-in mixers (default: all), each with its reference,
and puts CPU seconds, those of processes that a check starts included, into the page's two tables: of every clause for
`CLAUSES_OF`, of every mixer in all. Run it on a machine that has nothing else to do. What else the table of
clauses says comes from the checks, and a test holds the page to it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from mixerzoo.testing import CHECKS, checks_for, run_check

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import zoo

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
#: The mixer whose clauses are in the table.
CLAUSES_OF = "depth_attention"


def main() -> None:
    totals = seconds_of_mixers()
    for name in sys.argv[1:] or sorted(zoo.REGISTERED):
        mixer, spent = zoo.mixer_class(name), {}
        for check in checks_for(mixer):
            before = cpu_seconds()
            result = run_check(check, mixer, reference=zoo.reference(name))
            spent[check.name] = cpu_seconds() - before
            if not result.ok or result.cut:
                print(f"{name} {check.clause} {check.name}: {result.outcome}, {result.cut} cut {result.message}")
        totals[name] = sum(spent.values())
        print(f"{name}: {totals[name]:.0f} s", flush=True)
        if name == CLAUSES_OF:
            put("## What a clause costs and sees", [clause_row(check, spent.get(check)) for check in CHECKS])
        put("## What a mixer costs", [f"| `{mixer}` | {seconds:.0f} |" for mixer, seconds in sorted(totals.items())])


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])


def clause_row(name: str, seconds: float | None) -> str:
    """A row of the table of clauses."""
    check = CHECKS[name]
    cost = "" if seconds is None else f"{seconds:.1f}"
    return f"| {check.clause} | {cost} | {check.sizes} | {check.sees} | {check.blind} |"


def seconds_of_mixers() -> dict[str, float]:
    """What the page says."""
    section = PAGE.read_text(encoding="utf-8").split("## What a mixer costs", 1)[1].split("\n## ", 1)[0]
    return {name: float(seconds) for name, seconds in re.findall(r"^\| `(\w+)` \| (\d+) \|$", section, re.MULTILINE)}


def put(heading: str, rows: list[str]) -> None:
    """Put rows in place of those of the first table after a heading."""
    text = PAGE.read_text(encoding="utf-8")
    table = re.compile(rf"({re.escape(heading)}\n.*?\n\|[-|]+\|\n)(?:\|[^\n]*\n)*", re.DOTALL)
    changed, found = table.subn(lambda match: match.group(1) + "".join(f"{row}\n" for row in rows), text, count=1)
    assert found == 1, heading
    PAGE.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
