"""The conformance kit: holds any mixer to the clauses of docs/conformance.md.

Two lines in the tests of a plugin do it::

    @parametrize_with_checks([MyMixer])
    def test_mixer(check): check()

Needs the extra ``testing``.
"""

from mixerzoo.testing.against import Drawn, Reference
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import CHECKS, Check, known_check
from mixerzoo.testing.drawn_options import options
from mixerzoo.testing.results import Result, failure_text, failures_text
from mixerzoo.testing.runner import check_mixer, checks_for, parametrize_with_checks, rerun, run_check
from mixerzoo.testing.strategies import cases, chunkings, models

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "Drawn",
    "Reference",
    "Result",
    "cases",
    "check_mixer",
    "checks_for",
    "chunkings",
    "failure_text",
    "failures_text",
    "known_check",
    "models",
    "options",
    "parametrize_with_checks",
    "rerun",
    "run_check",
]
