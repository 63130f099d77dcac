"""How checks went, and how it is told."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixerzoo.mixer import Mixer
from mixerzoo.testing.against import Reference
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import Check

#: Checks whose failure explains that of others, the plainest first.
_CAUSES = (
    "returns",
    "nothing_kept",
    "inputs_untouched",
    "repeatable",
    "no_chance",
    "train_and_eval",
    "causality",
    "token_local_mixing",
    "rows_independent",
)


Outcome = Literal["passed", "failed", "expected failure", "unexpected pass", "skipped"]


@dataclass(frozen=True)
class Result:
    """How a check went.

    Attributes:
        check: which one.
        outcome: ``"passed"``, ``"failed"``, ``"expected failure"``, ``"unexpected pass"`` or ``"skipped"``
            (the time budget was spent, or a reference is needed that was not given).
        message: what is wrong, or the reason of an expected failure or a skip.
        snippet: Python that runs the smallest failing case again.
        seconds: that it took.
        ran: cases on which it was run.
        refused: cases that were drawn besides, and that the mixer refused.
        cut: cases that were left out because the check took too long.
    """

    check: Check
    outcome: Outcome
    message: str = ""
    snippet: str = ""
    seconds: float = 0.0
    ran: int = 0
    refused: int = 0
    cut: int = 0

    @property
    def ok(self) -> bool:
        """Whether the mixer is none the worse for it."""
        return self.outcome in ("passed", "expected failure", "skipped")


def failure_text(result: Result) -> str:
    """What a failed check prints: clause, demand, what is wrong, and the snippet."""
    head = _head(result)
    return head if not result.snippet else f"{head}\n\nTo run the smallest failing case again:\n\n{result.snippet}"


def failures_text(results: Iterable[Result]) -> str:
    """What is wrong with a mixer: the likeliest cause in full, then the other broken clauses without their snippets.

    Args:
        results: of any outcome.
    """
    failures = by_cause(results)
    if not failures:
        return ""
    cause, others = failures[0], failures[1:]
    parts = [failure_text(cause).rstrip()]
    if others:
        parts.append("What else is broken may follow from that (`--only CHECK` gives the snippet of another clause):")
    parts += [_head(result) for result in others if result.message != cause.message]
    same = [f"{result.check.clause} ({result.check.name})" for result in others if result.message == cause.message]
    if same:
        parts.append(f"With the same message as the first: {', '.join(same)}.")
    return "\n\n".join(parts)


def by_cause(results: Iterable[Result]) -> list[Result]:
    """Those that are not ok, the likeliest cause of the others first."""
    order = {name: number for number, name in enumerate(_CAUSES)}
    return sorted((r for r in results if not r.ok), key=lambda r: order.get(r.check.name, len(order)))


def _head(result: Result) -> str:
    return f"clause {result.check.clause} ({result.check.name}): {result.check.summary}\n{result.message}"


def snippet(check: Check, mixer: type[Mixer], case: Case, reference: Reference | None = None) -> str:
    """Python to paste that runs a case again."""
    fields: Sequence[tuple[str, Any]] = [
        ("model", dict(case.model)),
        ("options", dict(case.options)),
        ("batch_size", case.batch_size),
        ("chunks", case.chunks),
        ("seed", case.seed),
        ("pick", case.pick),
        *([] if case.training else [("training", False)]),
    ]
    lines = "\n".join(f"    {name}={value!r}," for name, value in fields)
    imports, arguments = f"from {mixer.__module__} import {mixer.__qualname__}\n", f"{mixer.__qualname__}, case"
    if check.needs:
        module, name = _place_of(reference)
        imports += f"from {module} import {name}\n"
        arguments += f", {name}"
    return (
        "from mixerzoo.testing import Case, rerun\n"
        f"{imports}\n"
        f"case = Case(\n{lines}\n)\n"
        f"rerun({check.name!r}, {arguments})\n"
    )


def _place_of(reference: Reference | None) -> tuple[str, str]:
    """Module and name under which a reference can be imported."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is reference and value is not None:
                return module.__name__, name
    return "your_tests", "reference"
