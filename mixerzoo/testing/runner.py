"""Runs checks on a mixer: from a test, from the command line, or one failing case again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis.errors import Unsatisfiable

import mixerzoo.testing.checks  # noqa: F401  registers the checks
from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.testing.against import Reference, References
from mixerzoo.testing.arguments import check_arguments, names_of
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import CHECKS, EXAMPLES, ORDINARY_EXAMPLES, SECONDS, Check, Profile, known_check
from mixerzoo.testing.contained import contained
from mixerzoo.testing.drawing import draw_and_hold
from mixerzoo.testing.drawn_options import Overrides
from mixerzoo.testing.large import large_cases
from mixerzoo.testing.ordinary import ORDINARY, default_options, ordinary_cases, smaller
from mixerzoo.testing.results import Outcome, Result, failure_text, snippet

#: Refused cases for each that runs, at most; no built-in mixer comes near one.
_MOST_REFUSED = 9


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

    Raises:
        MixerzooError: nothing can be drawn for an option.
    """
    if lack := check.lacks(mixer, reference):
        return Result(check, "skipped", lack)
    started = time.monotonic()
    wanted, shrinks = EXAMPLES[profile][check.cost], shrink and check.cost in ("cheap", "deadly")
    refusals: list[str] = []
    drawn: list[Case] = []
    others: list[Case] = []
    trial = _Trial(check, mixer, reference, SECONDS[profile])
    message, code = None, ""
    draws = not (check.named or check.plain)
    try:
        with suppress(Unsatisfiable):
            if draws:
                draw_and_hold(mixer, overrides, wanted, shrinks, trial.hold, drawn, refusals)
            for case in _not_drawn(check, mixer, overrides, reference):
                others.append(case)
                trial.hold(case)
    except Exception as error:  # noqa: BLE001  a mixer under test may fail in any way; that is the result
        failed, cause = trial.failing or (None, error)
        if failed is not None and others and shrinks:
            failed, cause = _shrunk(check, mixer, failed, reference, cause)
        message, code = _words_of(cause), "" if failed is None else snippet(check, mixer, failed, reference)
    message = message or (_too_few(len(drawn), wanted, refusals) if draws else None)
    outcome: Outcome = "passed" if message is None else "failed"
    ran, seconds = len(drawn) + len(others) - trial.cut, time.monotonic() - started
    return Result(check, outcome, message or "", code, seconds, ran, len(refusals), trial.cut)


@dataclass
class _Trial:
    """A check on its way through the cases.

    Attributes:
        check: the check.
        mixer: under test.
        reference: of the mixer.
        limit: seconds, of the clock and of the processor, after which no further case is begun: a busy machine cuts
            nothing that an idle one would not, nor do many threads.
        failing: the case that failed last, and how: of those that Hypothesis runs the smallest.
        cut: cases that were not begun.
        begun: on both clocks.
    """

    check: Check
    mixer: type[Mixer]
    reference: Reference | None
    limit: float
    failing: tuple[Case, Exception] | None = None
    cut: int = 0
    begun: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def hold(self, case: Case) -> None:
        """Run the check on a case, in time."""
        if min(time.monotonic() - self.begun[0], time.process_time() - self.begun[1]) > self.limit:
            self.cut += 1
            return
        if (error := _error_of(self.check, self.mixer, case, self.reference)) is not None:
            self.failing = case, error
            raise error


def _not_drawn(
    check: Check, mixer: type[Mixer], overrides: Overrides | None, reference: Reference | None
) -> Iterator[Case]:
    """The cases of a check that are not drawn: those of the reference, or ordinary ones, then those that are large."""
    if check.named:
        assert reference is not None
        yield from reference.cases
        return
    if check.plain:
        yield Case(ORDINARY[0], default_options(mixer.Config, overrides))
        return
    yield from ordinary_cases(mixer, overrides)[: ORDINARY_EXAMPLES[check.cost]]
    yield from large_cases(mixer, check.large, overrides)


def _words_of(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) and str(error) else f"{type(error).__name__}: {error}"


def _error_of(check: Check, mixer: type[Mixer], case: Case, reference: Reference | None) -> Exception | None:
    """What a check says of a case, or None if it holds."""
    try:
        with contained(), _laboratory():
            check.hold(mixer, case, reference)
    except Exception as error:  # noqa: BLE001  a mixer under test may fail in any way; that is the result
        return error
    return None


def _shrunk(
    check: Check, mixer: type[Mixer], case: Case, reference: Reference | None, error: Exception
) -> tuple[Case, Exception]:
    """The smallest case that still fails, going from one that does to a smaller one."""
    for candidate in smaller(mixer, case):
        if (still := _error_of(check, mixer, candidate, reference)) is not None:
            return _shrunk(check, mixer, candidate, reference, still)
    return case, error


def _too_few(ran: int, wanted: int, refusals: Sequence[str]) -> str | None:
    """What is wrong with a mixer that was hardly run, or None if it ran often enough."""
    # Drawing goes on until enough are served, so a mixer that serves one decoder in a hundred may reach that number.
    if ran >= math.ceil(wanted / 3) and len(refusals) <= _MOST_REFUSED * ran:
        return None
    if not refusals:
        return (
            f"only {ran} of {wanted} cases could be drawn: the rules of Config forbid nearly all options that were "
            "tried; `overrides` says which are allowed"
        )
    return (
        f"only {ran} of {wanted} cases ran, for the mixer refused {len(refusals)} that were drawn, the last in these "
        f"words: {refusals[-1]}"
    )


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
        expected_failures: check → reason. Strict: a check that passes all the same is not ok. Checks that only the
            thorough profile runs may stand here in either.
        only: names or clauses of the checks to run (``"causality"``, ``"1.1"``); default: all.
        seconds: time budget; checks that would start after it are skipped.
        progress: called before each check with None and after it with its result.

    Raises:
        MixerzooError: an argument names nothing: no profile, option or check, or a check that is not run.
    """
    expected = dict(expected_failures or {})
    only = None if only is None else list(only)
    check_arguments(
        [mixer],
        references={} if reference is None else {mixer: reference},
        profile=profile,
        overrides=overrides or {},
        expected_failures=expected,
        only=only,
    )
    chosen = None if only is None else names_of(only)
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
    reason = expected_failures.get(result.check.name, expected_failures.get(result.check.clause))
    if reason is None or result.outcome == "skipped":
        return result
    if result.outcome == "failed":
        return replace(result, outcome="expected failure", message=reason)
    message = f"expected to fail ({reason}), but it passes: take it off the list"
    return replace(result, outcome="unexpected pass", message=message)


def rerun(check: str, mixer: type[Mixer], case: Case, reference: Reference | None = None) -> None:
    """Run a check on one case; this is what a failure's snippet calls.

    Args:
        check: name of the check, or number of its clause.
        mixer: the mixer under test.
        case: the case.
        reference: of the mixer, where the check needs one.

    Raises:
        AssertionError: the mixer breaks the clause on this case.
        MixerzooError: no check has this name, or it needs what the reference does not give.
    """
    known = known_check(check)
    if lack := known.lacks(mixer, reference):
        raise MixerzooError(f"the check {check!r} cannot run: {lack}")
    with _laboratory():
        known.hold(mixer, case, reference)


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
        expected_failures: check → reason; as in `check_mixer`.

    Raises:
        MixerzooError: an argument names nothing: no mixer, profile, option or check.
    """
    import pytest

    mixers, expected = list(mixers), dict(expected_failures or {})
    check_arguments(
        mixers,
        references=references or {},
        profile=profile,
        overrides=overrides or {},
        expected_failures=expected,
    )

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
