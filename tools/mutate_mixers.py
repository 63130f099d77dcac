"""Mutates the built-in mixers and counts the mutants that the conformance kit kills.

``python tools/mutate_mixers.py [--module NAME] [--jobs 2] [--log FILE]`` is a script, not a test. A mutant is a
built-in mixer's module with one expression or statement changed, run in a process of its own. The judge is the kit, in
its quick profile, with the mixer's reference from tests/support/naive: clauses "Against its reference" first, as they
kill most for their time, then all the others until one fails.

``--alone`` adds a second figure, that of the kit without a reference. It says how many mutants are unsound, or cost
other than they say; what computes another method soundly, only a reference can tell. ``compiles`` counts for the first
figure only, where nothing else kills: it takes too long.

Mutants are judged in an order that is drawn, so that what is done at any time is a sample of all. With ``--log`` each
is written as it is judged, and the same command goes on after the last.

Cards, options' descriptions, annotations and docstrings are not mutated. Survivors are printed with the place
and the change; those explained in mutation_survivors.yaml are told apart from those that are not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
import torch

from mixerzoo import Mixer, load_registry
from mixerzoo.testing import Check, Reference, checks_for, run_check

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from ruamel.yaml import YAML

import mixerzoo_plugins
import zoo
from mutations import Mutant, load, mutants

#: Of `mixerzoo_plugins`; those of a folder are parts of one plugin.
MODULES = tuple(
    ".".join(file.relative_to(path).with_suffix("").parts)
    for path in map(Path, mixerzoo_plugins.__path__)
    for file in sorted(path.rglob("*.py"))
    if file.name != "__init__.py"
)
#: Seconds of a processor that a mutant may take; one that takes more is killed (mostly: it loops).
TIMEOUT = 300.0
#: Seconds after which one that waits is killed.
STUCK = 3600.0
#: `Mutant.key` → why nothing can tell the mutant from the original.
SURVIVORS: dict[tuple[str, str, str], str] = {
    (mutant["module"], mutant["line"], change): known["reason"]
    for known in YAML(typ="safe").load(Path(__file__).with_name("mutation_survivors.yaml"))
    for mutant in known["mutants"]
    for change in mutant["changes"]
}


@dataclass(frozen=True)
class Verdict:
    """Who killed a mutant.

    Attributes:
        mutant: which.
        by: name of the first check that killed it; empty for a survivor.
        alone: likewise without a reference; None if that was not asked.
        seconds: of a processor that it took.
    """

    mutant: Mutant
    by: str
    alone: str | None
    seconds: float


#: Methods that forwards do not call: the only checks that call them.
_ACCOUNTING = ("reference_accounts", "reference_cases", "in_flight_bytes", "flops", "sources")
_SEEN_BY: dict[str, tuple[str, ...]] = {
    "in_flight_bytes": _ACCOUNTING,
    "flops_per_token": _ACCOUNTING,
    "sources": _ACCOUNTING,
    "read_reference": ("reference_checkpoints", "stock_checkpoints"),
}
#: What kills most comes first, after the clauses that need a reference.
_FIRST = ("in_flight_bytes", "neutral_settings", "every_parameter_learns", "flops", "sources", "cached_decoding")


def killer(mixer: type[Mixer], checks: list[Check], reference: Reference | None = None) -> str:
    """Name of the first check that fails, or an empty text."""
    for check in checks:
        if not run_check(check, mixer, reference=reference, shrink=False).ok:
            return check.name
    return ""


def judge(mutant: Mutant, both: bool, answer: multiprocessing.connection.Connection) -> None:
    """Send who kills the mutant, with its reference and, if ``both`` are asked, without."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the life of the process
    try:
        mixer = load(mutant)
    except Exception as error:  # noqa: BLE001  a mutant may fail in any way
        by = f"import ({type(error).__name__})"
        answer.send((by, by))
        return
    names = _SEEN_BY.get(mutant.function)
    checks = [check for check in checks_for(mixer) if names is None or check.name in names]
    needing = [check for check in checks if check.needs]
    if "reset" in mutant.function:
        needing.sort(key=lambda check: check.name != "reference_start")
    held = killer(mixer, needing, zoo.reference(mixer.name))
    if held and not both:
        answer.send((held, None))
        return
    unaided = [check for check in checks if not check.needs and check.name != "compiles"]
    unaided.sort(key=lambda check: _FIRST.index(check.name) if check.name in _FIRST else len(_FIRST))
    alone = killer(mixer, unaided)
    compiles = [check for check in checks if check.name == "compiles"]
    answer.send((held or alone or killer(mixer, compiles), alone))


def judge_all(
    todo: list[Mutant], jobs: int, *, both: bool = False, budget: float | None = None, log: Path | None = None
) -> list[Verdict]:
    """Judge mutants, each in a process of its own.

    Args:
        todo: which.
        jobs: processes at a time.
        both: whether to judge without a reference as well.
        budget: seconds after which no further one is begun.
        log: holds a line for each that was judged; those are not judged again, and each further one gets its line.
    """
    begun = time.monotonic()
    context = multiprocessing.get_context("fork")
    verdicts = [] if log is None else _logged(todo, log)
    known = {verdict.mutant for verdict in verdicts}
    waiting = [mutant for mutant in reversed(todo) if mutant not in known]
    running: dict[Any, tuple[Mutant, Any, float]] = {}
    while waiting or running:
        if budget is not None and time.monotonic() - begun > budget:
            waiting.clear()
        while waiting and len(running) < jobs:
            ours, theirs = context.Pipe(duplex=False)
            mutant = waiting.pop()
            process = context.Process(target=judge, args=(mutant, both, theirs))
            process.start()
            theirs.close()
            running[ours] = (mutant, process, time.monotonic())
        done = multiprocessing.connection.wait(list(running), timeout=0.5)
        for pipe, (mutant, process, started) in list(running.items()):
            spent = psutil.Process(process.pid).cpu_times()
            seconds = spent.user + spent.system
            if pipe in done:
                try:
                    by, alone = pipe.recv()
                except EOFError:
                    by = alone = "the process died"
            elif seconds > TIMEOUT or time.monotonic() - started > STUCK:
                process.kill()
                by = alone = "timeout"
            else:
                continue
            process.join()
            del running[pipe]
            verdicts.append(Verdict(mutant, by, alone, seconds))
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([*mutant.key, by, alone, round(seconds, 1)]) + "\n")
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)} / {len(todo)}", end="", file=sys.stderr, flush=True)
    return verdicts


def _logged(todo: list[Mutant], log: Path) -> list[Verdict]:
    by_key = {mutant.key: mutant for mutant in todo}
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [
        Verdict(by_key[module, text, change], by, alone, seconds)
        for module, text, change, by, alone, seconds in map(json.loads, lines)
        if (module, text, change) in by_key
    ]


def report(verdicts: list[Verdict]) -> str:
    """The table, then every survivor."""
    head = (
        f"{'module':32} {'mutants':>7} {'killed':>14} {'without reference':>18} {'explained':>10} {'unexplained':>12}"
    )
    lines = [head]
    for module in [*sorted({v.mutant.module for v in verdicts}), "all"]:
        of = [v for v in verdicts if module in ("all", v.mutant.module)]
        killed, alone = sum(bool(v.by) for v in of), [v.alone for v in of if v.alone is not None]
        explained = sum(not v.by and v.mutant.key in SURVIVORS for v in of)
        share = f"{killed} ({killed / len(of):.1%})"
        unaided = f"{sum(map(bool, alone)) / len(of):.1%}" if len(alone) == len(of) else ""
        lines.append(
            f"{module:32} {len(of):7} {share:>14} {unaided:>18} {explained:10} {len(of) - killed - explained:12}"
        )
    killers = Counter(v.by for v in verdicts if v.by).most_common()
    lines += ["", "killed by: " + ", ".join(f"{by} {number}" for by, number in killers)]
    for title, known in (("Unexplained survivors", False), ("Explained survivors", True)):
        survivors = [v for v in verdicts if not v.by and (v.mutant.key in SURVIVORS) == known]
        lines += ["", f"{title}: {len(survivors)}"]
        for verdict in sorted(survivors, key=lambda v: (v.mutant.module, v.mutant.line)):
            mutant = verdict.mutant
            lines.append(f"  {mutant.module}.py:{mutant.line}: {mutant.change}    [{mutant.text}]")
            if known:
                lines.append(f"      {SURVIVORS[mutant.key]}")
    stale = {v.mutant.key for v in verdicts if v.by} & SURVIVORS.keys()
    lines += [f"stale explanation: {key}" for key in sorted(stale)]
    return "\n".join(lines)


def main() -> int:
    """Returns 1 if there are unexplained survivors or less than 95 % are killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", choices=MODULES, action="append", help="of mixerzoo_plugins; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="judge without a reference as well")
    parser.add_argument("--seconds", type=float, help="judge as many mutants as this time allows")
    parser.add_argument("--log", type=Path, help="a line for each mutant; what stands there is not judged again")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    arguments = parser.parse_args()
    todo = [mutant for module in arguments.module or MODULES for mutant in mutants(module)]
    random.Random(0).shuffle(todo)
    if arguments.list:
        for mutant in todo:
            print(f"{mutant.module}.py:{mutant.line}: {mutant.change}")
        print(len(todo), Counter(m.module for m in todo))
        return 0
    load_registry()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    verdicts = judge_all(todo, arguments.jobs, both=arguments.alone, budget=arguments.seconds, log=arguments.log)
    print(report(verdicts))
    print(f"\n{time.monotonic() - started:.0f} s")
    killed = sum(bool(v.by) for v in verdicts) / len(verdicts)
    unexplained = sum(not v.by and v.mutant.key not in SURVIVORS for v in verdicts)
    return int(unexplained > 0 or killed < 0.95)


if __name__ == "__main__":
    sys.exit(main())
