"""Measures what the quick profile costs, and writes it into docs/conformance.md.

``python tools/conformance_costs.py [MIXER …]`` runs the kit on built-in mixers (default: all), each with its reference,
and puts CPU seconds, those of processes that a check starts included, into the page's two tables: of every clause for
`CLAUSES_OF`, of every mixer in all. What else the table of clauses says comes from the checks, and a test holds the
page to it.

Other work on the machine makes the same work take up to twice as many CPU seconds, as cores share caches and memory. So
a fixed piece of work is timed around each check, and seconds are those that the check would take at the best pace seen.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mixerzoo.testing import CHECKS, Case, checks_for, rerun, run_check
from mixerzoo.testing.ordinary import ORDINARY

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import zoo

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
#: The mixer whose clauses are in the table.
CLAUSES_OF = "depth_attention"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mixers", nargs="*", default=sorted(zoo.REGISTERED), metavar="MIXER")
    parser.add_argument("--pace", type=float, default=math.inf, help="the best that this machine has shown before")
    arguments = parser.parse_args()
    best = min(arguments.pace, *(pace() for _ in range(40)))
    for name in arguments.mixers:
        mixer, spent, paces = zoo.mixer_class(name), {}, [pace()]
        for check in checks_for(mixer):
            before = cpu_seconds()
            result = run_check(check, mixer, reference=zoo.reference(name))
            seconds = cpu_seconds() - before
            paces.append(pace())
            best = min(best, paces[-1])
            spent[check.name] = seconds * best / ((paces[-2] + paces[-1]) / 2)
            if not result.ok or result.cut:
                print(f"{name} {check.clause} {check.name}: {result.outcome}, {result.cut} cut {result.message}")
        total, usual = sum(spent.values()), statistics.mean(paces)
        print(f"{name}: {total:.0f} s, at a pace of {best:.4f}; measured at {usual:.4f}", flush=True)
        if name == CLAUSES_OF:
            put("## What a clause costs and sees", [clause_row(check, spent.get(check)) for check in CHECKS])
        totals = sorted((seconds_of_mixers() | {name: total}).items())
        put("## What a mixer costs", [f"| `{mixer}` | {seconds:.0f} |" for mixer, seconds in totals])


def pace() -> float:
    """CPU seconds of a fixed piece of work, much of the kind that checks do."""
    before = time.process_time()
    for training in (True, False):
        rerun("cached_decoding", zoo.mixer_class("residual"), Case(ORDINARY[0], chunks=(17, 1, 2), training=training))
    return time.process_time() - before


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
