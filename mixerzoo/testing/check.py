"""A check: a clause of docs/conformance.md, and the function that holds a mixer to it on one case."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerzooError, did_you_mean
from mixerzoo.mixer import Mixer
from mixerzoo.testing.against import Reference
from mixerzoo.testing.case import Case

#: Of a mixer and a case, and of the mixer's reference where the check needs one.
Body = Callable[..., None]

#: How often a check is worth running: "cheap" on drawn cases; "deadly" on more, as it finds most for its time; "fair"
#: on some; "dear" on few; "slow" only in the thorough profile; "once" is for what no case changes.
Cost = Literal["cheap", "deadly", "fair", "dear", "slow", "once"]

Profile = Literal["quick", "thorough"]

#: Ways in which a case that is not drawn can be large; `mixerzoo.testing.large` says what they are.
Large = Literal["rows", "long", "deep", "wide", "far", "big", "varied", "tall"]

#: Examples by profile and cost of a check; 0 leaves it out.
EXAMPLES: dict[Profile, dict[Cost, int]] = {
    "quick": {"cheap": 15, "deadly": 60, "fair": 6, "dear": 2, "slow": 0, "once": 1},
    "thorough": {"cheap": 300, "deadly": 300, "fair": 100, "dear": 20, "slow": 3, "once": 1},
}

#: CPU seconds after which a check is cut: no further case is begun, and the result says so.
SECONDS: dict[Profile, float] = {"quick": 30.0, "thorough": 3600.0}

#: How many of the cases that are not drawn (see `ordinary_cases`) a check gets, in either profile; None: all.
ORDINARY_EXAMPLES: dict[Cost, int | None] = {
    "cheap": None,
    "deadly": None,
    "fair": 1,
    "dear": 1,
    "slow": 0,
    "once": 0,
}

#: Tolerance of results that are equal but for the order of float64 operations.
EXACT = 1e-10


@dataclass(frozen=True)
class Check:
    """One clause, made executable.

    Attributes:
        name: of the function, e.g. ``"causality"``.
        clause: its number in docs/conformance.md, e.g. ``"1.1"``.
        summary: what it demands, one sentence.
        body: raises AssertionError on a case that breaks the clause.
        cost: how often it can be run.
        needs: what a `Reference` must give, one of these at least, for the check to run; empty: it needs none.
        named: whether its cases are those that the reference names; none is drawn.
        apart: whether it runs the mixer in other processes, which import it.
        plain: whether its one case is an ordinary decoder with the default options; none is drawn.
        sees: dtypes and modes in which it runs, in words.
        blind: what it cannot see.
        large: in which ways the large cases are large on which it runs.
    """

    name: str
    clause: str
    summary: str
    body: Body
    cost: Cost
    needs: tuple[str, ...] = ()
    large: tuple[Large, ...] = ()
    named: bool = False
    apart: bool = False
    plain: bool = False
    sees: str = ""
    blind: str = ""

    @property
    def sizes(self) -> str:
        """The sizes of its cases, in words; docs/conformance.md says what these mean."""
        return ", ".join(["named" if self.named else "one" if self.cost == "once" else "small", *self.large])

    def lacks(self, mixer: type[Mixer], reference: Reference | None) -> str | None:
        """Why the check cannot run on this mixer with this reference, or None if it can."""
        if self.apart and (reason := _not_importable(mixer)):
            return reason
        if not self.needs:
            return None
        if reference is None:
            return "no reference was given"
        if any(getattr(reference, name) for name in self.needs):
            return None
        return f"the reference gives no {' or '.join(self.needs)}"

    def hold(self, mixer: type[Mixer], case: Case, reference: Reference | None) -> None:
        """Run it on one case.

        Raises:
            AssertionError: the mixer breaks the clause on this case.
        """
        extra: tuple[Any, ...] = (reference,) if self.needs else ()
        try:
            self.body(mixer, case, *extra)
        except SystemExit as error:
            raise AssertionError(f"the mixer would end the process: SystemExit({error})") from error


def _not_importable(mixer: type[Mixer]) -> str | None:
    """Why no other process can import a mixer, or None if one can."""
    if "<locals>" in mixer.__qualname__:
        return "other processes run it, and cannot import a class that a function defines"
    if mixer.__module__ == "__main__" and not Path(getattr(sys.modules["__main__"], "__file__", "")).is_file():
        return "other processes run it, and cannot import a class of a notebook or a prompt; put it into a file"
    return None


#: Every check by name, in the order of the clauses.
CHECKS: dict[str, Check] = {}


def known_check(name: str) -> Check:
    """The check of a name, or of a clause's number.

    Args:
        name: e.g. ``"causality"`` or ``"1.1"``.

    Raises:
        MixerzooError: there is none.
    """
    by_number = {check.clause: check for check in CHECKS.values()}
    found = CHECKS.get(name) or by_number.get(name)
    if found is None:
        known = ", ".join(f"{check.clause} {check.name}" for check in CHECKS.values())
        raise MixerzooError(f"no check is named {name!r}{did_you_mean(name, (*CHECKS, *by_number))}; known: {known}")
    return found


def clause(
    number: str,
    cost: Cost = "cheap",
    needs: tuple[str, ...] = (),
    large: tuple[Large, ...] | None = None,
    named: bool = False,
    apart: bool = False,
    plain: bool = False,
) -> Callable[[Body], Body]:
    """Register a function as the check of a clause.

    The first line of its docstring is the summary; one that begins with ``Sees:`` and one with ``Blind:`` say what it
    sees and what it cannot see.

    Args:
        number: of the clause.
        cost: how often it can be run.
        needs: see `Check`.
        large: see `Check`; None: what a cheap check bears.
        named: see `Check`.
        apart: see `Check`.
        plain: see `Check`.
    """
    sizes = large if large is not None else ("rows", "long") if cost == "cheap" else ()

    def register(body: Body) -> Body:
        summary, *others = [line.strip() for line in (body.__doc__ or "").strip().splitlines()]
        sees, blind = (
            next(line.removeprefix(key).strip().rstrip(".") for line in others if line.startswith(key))
            for key in ("Sees:", "Blind:")
        )
        check = Check(body.__name__, number, summary, body, cost, needs, sizes, named, apart, plain, sees, blind)
        CHECKS[body.__name__] = check
        for name in sorted(CHECKS, key=lambda name: [int(part) for part in CHECKS[name].clause.split(".")]):
            CHECKS[name] = CHECKS.pop(name)
        return body

    return register


def assert_close(ours: Tensor, expected: Tensor, what: str, tolerance: float = EXACT) -> None:
    """Demand equality up to ``tolerance``, absolute and relative to the largest expected entry.

    Raises:
        AssertionError: says what differs and by how much.
    """
    assert ours.shape == expected.shape, f"{what}: shape {list(ours.shape)}, expected {list(expected.shape)}"
    if not ours.numel():
        return
    assert ours.isfinite().all(), f"{what}: not finite"
    ours, expected = ours.detach(), expected.detach()
    scale = max(1.0, float(expected.abs().max()))
    difference = float((ours - expected).abs().max())
    assert difference <= tolerance * scale, f"{what}: differs by {difference:.3g} (allowed {tolerance * scale:.1g})"


def assert_same(ours: Tensor, expected: Tensor, what: str) -> None:
    """Demand equal bits.

    Raises:
        AssertionError: says what differs and by how much.
    """
    if not torch.equal(ours, expected):
        difference = float((ours.double() - expected.double()).abs().max())
        raise AssertionError(f"{what}: not the same bits (differs by {difference:.3g})")


def same_values(one: Any, other: Any) -> bool:
    """Whether two values are the same, bit for bit: tensors, and lists and dicts of any depth; modules by identity."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_values, one, other))
    if isinstance(one, nn.Module) or callable(one):
        return one is other
    return bool(type(one) is type(other) and (one is other or one == other))
