"""The conformance kit catches wrong mixers, each by the check meant for it, and lets right ones pass."""

from __future__ import annotations

import pytest

from mixerzoo import Mixer
from mixerzoo.testing import CHECKS, failure_text, run_check
from wrong_mixers import CORRECT, WRONG, LeaksOneTokenAhead


@pytest.mark.parametrize("mixer", WRONG, ids=lambda mixer: mixer.name)
def test_wrong_mixer_is_caught(mixer: type[Mixer]) -> None:
    check = CHECKS[WRONG[mixer]]
    result = run_check(check, mixer, shrink=False)
    assert result.outcome == "failed"
    assert result.message.strip()
    text = failure_text(result)
    assert text.startswith(f"clause {check.clause} ({check.name}): {check.summary}\n{result.message}")
    # The snippet fails again, in the same words.
    with pytest.raises(Exception) as caught:  # noqa: PT011  as wrong mixers fail in any way
        exec(result.snippet, {})
    said = str(caught.value)
    assert said.splitlines()[0][:60] in result.message


@pytest.mark.parametrize("mixer", CORRECT, ids=lambda mixer: mixer.name)
@pytest.mark.parametrize("name", sorted(set(WRONG.values()) - {"compiles"}))
def test_right_mixer_passes(name: str, mixer: type[Mixer]) -> None:
    result = run_check(CHECKS[name], mixer)
    assert result.ok, failure_text(result)


def test_right_mixer_compiles() -> None:
    result = run_check(CHECKS["compiles"], CORRECT[0])
    assert result.ok, failure_text(result)


def test_smallest_case_is_small() -> None:
    result = run_check(CHECKS["causality"], LeaksOneTokenAhead)
    assert "'num_layers': 1," in result.snippet
    assert "batch_size=1," in result.snippet
    assert any(f"chunks={chunks}," in result.snippet for chunks in ("(2,)", "(1, 1)"))


def test_every_check_has_its_wrong_mixer() -> None:
    # No mixer reaches the skeleton's weights, and sharding is slow.
    assert set(CHECKS) - set(WRONG.values()) <= {"skeleton_untouched", "shards"}
