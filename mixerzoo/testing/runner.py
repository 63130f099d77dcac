"""Runs checks on a mixer: from a test, from the command line, or one failing case again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

import mixerzoo.testing.checks  # noqa: F401  registers the checks
from mixerzoo.errors import MixerzooError, did_you_mean
from mixerzoo.mixer import Mixer
from mixerzoo.testing.against import Reference, References
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import CHECKS, Check, Cost
from mixerzoo.testing.drawn_options import Overrides
from mixerzoo.testing.strategies import cases

Profile = Literal["quick", "thorough"]

#: Examples by profile and cost of a check; 0 leaves it out.
EXAMPLES: dict[Profile, dict[Cost, int]] = {
    "quick": {"cheap": 15, "deadly": 60, "dear": 2, "slow": 0, "once": 1},
    "thorough": {"cheap": 300, "deadly": 300, "dear": 20, "slow": 3, "once": 1},
}


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
    """

    check: Check
    outcome: Literal["passed", "failed", "expected failure", "unexpected pass", "skipped"]
    message: str = ""
    snippet: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the mixer is none the worse for it."""
        return self.outcome in ("passed", "expected failure", "skipped")


def checks_for(mixer: type[Mixer], profile: Profile = "quick") -> list[Check]:
    """The checks that a profile runs on a mixer, in the order of the clauses.

    Args:
        mixer: the mixer under test.
        profile: ``"quick"`` or ``"thorough"``.
    """
    return [check for check in CHECKS.values() if EXAMPLES[profile][check.cost]]


def run_check(
    check: Check,
    mixer: type[Mixer],
    *,
    reference: Reference | None = None,
    profile: Profile = "quick",
    overrides: Overrides | None = None,
    shrink: bool = True,
) -> Result:
    """Run one check on drawn cases.

    Args:
        check: which one.
        mixer: the mixer under test.
        reference: of the mixer; checks that need what it does not give are skipped.
        profile: how many cases.
        overrides: strategies for some of the mixer's options.
        shrink: look for the smallest failing case; without, the first one found will do.

    Returns:
        The result; a failure carries the smallest case that Hypothesis found.
    """
    if lack := check.lacks(reference):
        return Result(check, "skipped", lack)
    started = time.monotonic()
    failing: list[tuple[Case, Exception]] = []

    # Every draw of a run is the same run: no database, no clock.
    @settings(
        max_examples=EXAMPLES[profile][check.cost],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink and check.cost in ("cheap", "deadly") else (Phase.generate,),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(case=cases(mixer, overrides))
    def hold(case: Case) -> None:
        try:
            with _laboratory():
                check.hold(mixer, case, reference)
        except Exception as error:
            # The last one that Hypothesis runs is the smallest.
            failing[:] = [(case, error)]
            raise

    try:
        hold()
    except Unsatisfiable:
        text = (
            "nothing could be drawn: the mixer refuses every decoder and every option that was tried. If a required "
            "option has a type that the kit cannot draw, give it a default or a strategy in `overrides`"
        )
        return Result(check, "failed", text, "", time.monotonic() - started)
    except Exception as error:  # noqa: BLE001  a mixer under test may fail in any way; that is the result
        if not failing:
            return Result(check, "failed", f"{type(error).__name__}: {error}", "", time.monotonic() - started)
        case, cause = failing[0]
        text = str(cause) if isinstance(cause, AssertionError) else f"{type(cause).__name__}: {cause}"
        return Result(check, "failed", text, snippet(check, mixer, case, reference), time.monotonic() - started)
    return Result(check, "passed", seconds=time.monotonic() - started)


@contextmanager
def _laboratory() -> Iterator[None]:
    """Poison uninitialised memory with NaN, and use one thread: more only get in the way of cases so small."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=warn_only or not deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def check_mixer(
    mixer: type[Mixer],
    *,
    reference: Reference | None = None,
    profile: Profile = "quick",
    overrides: Overrides | None = None,
    expected_failures: Mapping[str, str] | None = None,
    only: Iterable[str] | None = None,
    seconds: float | None = None,
    progress: Callable[[Check, Result | None], None] | None = None,
) -> list[Result]:
    """Hold a mixer to every clause.

    Args:
        mixer: the mixer under test.
        reference: of the mixer; without one, the clauses of chapter 10 are skipped.
        profile: ``"quick"`` (seconds) or ``"thorough"``.
        overrides: strategies for options that their types do not describe.
        expected_failures: check → reason. Strict: a check that passes all the same is not ok.
        only: names of the checks to run; default: all.
        seconds: time budget; checks that would start after it are skipped.
        progress: called before each check with None and after it with its result.

    Raises:
        MixerzooError: a name in ``expected_failures`` or ``only`` is no check, or one that the profile leaves out.
    """
    expected = dict(expected_failures or {})
    chosen = None if only is None else set(only)
    for name in (*expected, *(chosen or ())):
        known_check(name)
    left_out = [name for name in chosen or () if not EXAMPLES[profile][CHECKS[name].cost]]
    if left_out:
        raise MixerzooError(f"the check {min(left_out)!r} is slow and runs only in the thorough profile")
    started = time.monotonic()
    results = []
    for check in checks_for(mixer, profile):
        if chosen is not None and check.name not in chosen:
            continue
        if progress is not None:
            progress(check, None)
        if seconds is not None and time.monotonic() - started > seconds:
            result = Result(check, "skipped", f"the budget of {seconds:g} s was spent")
        else:
            ran = run_check(check, mixer, reference=reference, profile=profile, overrides=overrides)
            result = apply_expectation(ran, expected)
        results.append(result)
        if progress is not None:
            progress(check, result)
    return results


def apply_expectation(result: Result, expected_failures: Mapping[str, str]) -> Result:
    """Turn a result into what it means for one who expected some checks to fail."""
    reason = expected_failures.get(result.check.name)
    if reason is None or result.outcome == "skipped":
        return result
    if result.outcome == "failed":
        return Result(result.check, "expected failure", reason, result.snippet, result.seconds)
    message = f"expected to fail ({reason}), but it passes: take it off the list"
    return Result(result.check, "unexpected pass", message, seconds=result.seconds)


def rerun(check: str, mixer: type[Mixer], case: Case, reference: Reference | None = None) -> None:
    """Run a check on one case; this is what a failure's snippet calls.

    Args:
        check: name of the check.
        mixer: the mixer under test.
        case: the case.
        reference: of the mixer, where the check needs one.

    Raises:
        AssertionError: the mixer breaks the clause on this case.
        MixerzooError: no check has this name, or it needs what the reference does not give.
    """
    known = known_check(check)
    if lack := known.lacks(reference):
        raise MixerzooError(f"the check {check!r} cannot run: {lack}")
    with _laboratory():
        known.hold(mixer, case, reference)


def known_check(name: str) -> Check:
    """The check of a name.

    Raises:
        MixerzooError: there is none.
    """
    if name not in CHECKS:
        raise MixerzooError(f"no check is named {name!r}{did_you_mean(name, CHECKS)}; known: {', '.join(CHECKS)}")
    return CHECKS[name]


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


def parametrize_with_checks(
    mixers: Iterable[type[Mixer]],
    *,
    references: References | None = None,
    profile: Profile = "quick",
    overrides: Overrides | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: one test for each mixer and check.

    ::

        @parametrize_with_checks([MyMixer])
        def test_mixer(check):
            check()

    Args:
        mixers: the mixers under test.
        references: mixer → its `Reference`; without one, the clauses of chapter 10 are skipped.
        profile: ``"quick"`` or ``"thorough"``.
        overrides: strategies for options that their types do not describe.
        expected_failures: check → reason; strict.

    Raises:
        MixerzooError: a name in ``expected_failures`` is no check.
    """
    import pytest

    expected = dict(expected_failures or {})
    for name in expected:
        known_check(name)

    def bound(check: Check, mixer: type[Mixer]) -> Callable[[], None]:
        def call() -> None:
            reference = (references or {}).get(mixer)
            ran = run_check(check, mixer, reference=reference, profile=profile, overrides=overrides)
            result = apply_expectation(ran, expected)
            if not result.ok:
                raise AssertionError(failure_text(result))
            if result.outcome == "skipped":
                pytest.skip(result.message)
            if result.outcome == "expected failure":
                pytest.xfail(result.message)

        return call

    parameters = [
        pytest.param(bound(check, mixer), id=f"{mixer.name}-{check.name}")
        for mixer in mixers
        for check in checks_for(mixer, profile)
    ]
    return pytest.mark.parametrize("check", parameters)


def failure_text(result: Result) -> str:
    """What a failed check prints: clause, demand, what is wrong, and the snippet."""
    head = f"clause {result.check.clause} ({result.check.name}): {result.check.summary}\n{result.message}"
    return head if not result.snippet else f"{head}\n\nTo run the smallest failing case again:\n\n{result.snippet}"
