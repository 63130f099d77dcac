"""How the conformance kit is called, and what it tells."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from pydantic import Field

import zoo
from mixerzoo import DecoderShape, Mixer, MixerConfig, ops
from mixerzoo.errors import MixerError, MixerzooError
from mixerzoo.testing import (
    CHECKS,
    Case,
    Result,
    check_mixer,
    failure_text,
    failures_text,
    parametrize_with_checks,
    rerun,
    run_check,
)
from mixerzoo.testing.check import SECONDS
from mixerzoo.testing.large import large_cases
from mixerzoo.testing.ordinary import is_served
from mixerzoo_plugins.attn_res import AttnRes
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.residual import Residual
from wrong import decoding, precision
from wrong.sequence import LeaksOneTokenAhead

MODEL = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_heads": 2}


class Nameless(Mixer):
    """Has neither name nor card."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"overrides": {"dilatoin": st.just(1)}}, r"'dilatoin', which is no option of DenseFormer \(did you mean 'dil"),
        ({"overrides": {"period": [1]}}, r"DenseFormer: option 'period': nothing can be drawn from .*\[1\] is not a"),
        ({"profile": "fast"}, "no profile is named 'fast'; known: quick, thorough"),
        ({"expected_failures": {"casuality": "x"}}, "no check is named 'casuality' .did you mean 'causality'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_names_nothing_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MixerzooError, match=words):
        check_mixer(DenseFormer, **arguments)
    with pytest.raises(MixerzooError, match=words):
        parametrize_with_checks([DenseFormer], **arguments)


@pytest.mark.parametrize(
    ("mixer", "words"),
    [
        (int, "<class 'int'> is not a subclass of mixerzoo.Mixer"),
        ("residual", "'residual' is not a subclass of mixerzoo.Mixer"),
        (Nameless, "the mixer Nameless has no name and no card"),
    ],
)
def test_what_is_no_mixer_is_refused(mixer: Any, words: str) -> None:
    with pytest.raises(MixerzooError, match=words):
        check_mixer(mixer)
    with pytest.raises(MixerzooError, match=words):
        parametrize_with_checks([Residual, mixer])


def test_no_mixer_is_no_test() -> None:
    with pytest.raises(MixerzooError, match="there is no mixer to check"):
        parametrize_with_checks(iter([]))


def test_references_are_of_mixers_under_test() -> None:
    reference = zoo.reference("denseformer")
    with pytest.raises(MixerzooError, match="`references` names DenseFormer, which is not among the mixers under test"):
        parametrize_with_checks([Residual], references={DenseFormer: reference})
    with pytest.raises(MixerzooError, match=r"the reference of DenseFormer is no mixerzoo\.testing\.Reference: 3"):
        check_mixer(DenseFormer, reference=3)  # type: ignore[arg-type]


def test_an_option_of_one_of_several_mixers_can_be_overridden() -> None:
    decorated = parametrize_with_checks(iter([Residual, DenseFormer]), overrides={"period": st.just(2)})
    ids = [parameter.id for parameter in decorated.mark.args[1]]
    assert {name.partition("-")[0] for name in ids} == {"residual", "denseformer"}


def test_an_expected_failure_that_is_not_run_is_refused() -> None:
    with pytest.raises(MixerzooError, match="`expected_failures` names 'card', which `only` leaves out"):
        check_mixer(Residual, only=["causality"], expected_failures={"card": "x"})
    # But for what the quick profile leaves out: the same list serves both profiles.
    (result,) = check_mixer(Residual, only=["card"], overrides={})
    assert result.ok
    assert parametrize_with_checks([Residual], expected_failures={"shards": "gloo is not installed"})


def test_a_check_is_known_by_the_number_of_its_clause() -> None:
    results = check_mixer(Residual, only=["4.6", "card", "3.13"], expected_failures={"4.6": "an example"})
    assert [(result.check.name, result.outcome) for result in results] == [
        ("seeds_matter", "passed"),
        ("card", "unexpected pass"),
    ]
    with pytest.raises(
        MixerzooError, match=r"no check is named '3\.88' \(did you mean '3\.8'\?\); known: 1\.1 causality, "
    ):
        check_mixer(Residual, only=["3.88"])


def test_the_cases_that_a_reference_names_are_one_by_one_and_can_be_cut(monkeypatch) -> None:
    check = CHECKS["reference_cases"]
    few = replace(zoo.reference("denseformer"), cases=(Case(MODEL), Case(MODEL, chunks=(1, 1))))
    assert run_check(check, DenseFormer, reference=few).ran == 2
    monkeypatch.setitem(SECONDS, "quick", -1.0)
    result = run_check(check, DenseFormer, reference=few)
    assert (result.ran, result.cut) == (0, 2)


def test_a_stream_that_the_noise_on_its_weights_makes_overflow_is_not_blamed() -> None:
    deep = {**MODEL, "num_layers": 66, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    rerun("precisions", zoo.mixer_class("laurel"), Case(deep, batch_size=1, chunks=(2, 1), pick=1))


class Asked(Residual):
    """Refuses two layers, and counts how often it is asked."""

    name = "asked"
    times = 0

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        type(self).times += 1
        if shape.num_steps == 2:
            raise MixerzooError("not two")


def test_whether_a_mixer_serves_a_decoder_is_asked_once() -> None:
    assert [is_served(Asked, Case(MODEL)) for _ in range(2)] == [False, False]
    assert [is_served(Asked, Case({**MODEL, "num_layers": layers})) for layers in (3, 3)] == [True, True]
    assert Asked.times == 2


def test_cases_are_counted() -> None:
    result = run_check(CHECKS["card"], Residual)
    # Fifteen drawn ones and three that are not.
    assert (result.ran, result.refused) == (18, 0)
    result = run_check(CHECKS["card"], precision.RefusesDepth)
    assert result.ok
    assert (result.ran, result.refused > 15) == (15, True)
    (result,) = check_mixer(precision.RefusesDepth, only=["card"], expected_failures={"card": "x"})
    assert (result.outcome, result.ran) == ("unexpected pass", 15)


@pytest.mark.parametrize("check", ["causality", "card"])
def test_a_mixer_that_refuses_nearly_all_does_not_pass(check: str) -> None:
    result = run_check(CHECKS[check], decoding.RefusesNearlyAll)
    assert result.outcome == "failed"
    assert f"only {result.ran} of 15 cases ran, for the mixer refused {result.refused} that" in result.message
    assert result.message.endswith("the last in these words: no such decoder")


class Named(Residual):
    """An option that the kit cannot draw, and that has no default."""

    class Config(MixerConfig):
        names: dict[str, int] = Field(description="Whatever.")

    name = "named"


def test_a_required_option_that_only_overrides_can_give() -> None:
    result = run_check(CHECKS["ordinary_decoder"], Named, overrides={"names": st.just({"a": 1})})
    assert result.ok, result.message


class RefusesOnePeriod(DenseFormer):
    """Serves every ordinary decoder with the default options."""

    name = "refuses_one_period"

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        if config.period == 2:
            raise MixerError("no such period")
        super().__init__(config, shape)


def test_an_option_that_is_held_is_held_where_nothing_is_drawn() -> None:
    check = CHECKS["ordinary_decoder"]
    assert run_check(check, RefusesOnePeriod).ok
    result = run_check(check, RefusesOnePeriod, overrides={"period": st.just(2)})
    assert result.message.startswith("both are refused: no such period")
    # Its values are not tried again, those of the others are.
    assert run_check(CHECKS["options_matter"], DenseFormer, overrides={"period": st.just(2)}).ok


def test_a_case_that_is_no_decoder_says_nothing_of_what_a_mixer_refuses() -> None:
    reference = replace(zoo.reference("denseformer"), refused=(Case({}, {"period": 99}),))
    result = run_check(CHECKS["reference_refusals"], DenseFormer, reference=reference)
    assert result.outcome == "failed"
    assert "num_layers" in result.message


def test_what_another_process_cannot_import_is_skipped_there_in_words() -> None:
    class Local(Residual):
        """Of a function."""

    result = run_check(CHECKS["hash_seeds"], Local)
    assert result.outcome == "skipped"
    assert result.message == "other processes run it, and cannot import a class that a function defines"


def test_a_mixer_of_a_program_is_run_in_processes_of_its_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from mixerzoo.testing import CHECKS, run_check\n"
        "from mixerzoo_plugins.residual import Residual\n"
        "class Own(Residual):\n    name = 'own'\n"
        "if __name__ == '__main__':\n    print(run_check(CHECKS['hash_seeds'], Own))\n"
    )
    asked = [sys.executable, str(program)]
    assert "outcome='passed'" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    piped = subprocess.run([sys.executable], input=program.read_text(), capture_output=True, text=True, check=True)
    assert "cannot import a class of a notebook or a prompt" in piped.stdout


def test_rules_that_forbid_nearly_all_options_are_told() -> None:
    result = run_check(CHECKS["card"], DenseFormer, overrides={"period": st.just(-1)})
    assert result.message == (
        "only 0 of 15 cases could be drawn: the rules of Config forbid nearly all options that were tried; "
        "`overrides` says which are allowed"
    )


def failed(check: str, message: str) -> Result:
    return Result(CHECKS[check], "failed", message, f"rerun({check!r})\n")


def test_the_likely_cause_comes_first_and_alone_has_a_snippet() -> None:
    results = [
        Result(CHECKS["card"], "passed"),
        failed("causality", "bits"),
        failed("cached_decoding", "differs"),
        failed("nothing_kept", "calls changed"),
        failed("meta_device", "calls changed"),
        failed("crop", "differs more"),
    ]
    text = failures_text(results)
    assert text.startswith(failure_text(results[3]).rstrip())
    assert text.count("rerun(") == 1
    heads = [line.split(" (")[0] for line in text.splitlines() if line.startswith("clause ")]
    assert heads == ["clause 3.3", "clause 1.1", "clause 2.1", "clause 2.3"]
    assert text.endswith("With the same message as the first: 8.2 (meta_device).")
    assert failures_text(results[:2]) == failure_text(results[1]).rstrip()
    assert failures_text(results[:1]) == ""


@pytest.mark.usefixtures("forms_by_size")
def test_varied_cases_have_each_choice_and_larger_numbers_and_reach_what_large_tensors_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = large_cases(AttnRes, ("varied",))
    assert [dict(case.options) for case in cases] == [{"block_size": 6}, {"dialect": "snapshot", "block_size": 6}]
    taken = []
    read = ops.source_reads
    monkeypatch.setattr(ops, "source_reads", lambda *given: taken.append(len(given[1][0])) or read(*given))
    for case in cases:
        rerun("cached_decoding", AttnRes, case)
    # Of the prefill and of the forward: four reads at once, and what is left of them before the next source.
    assert set(taken) == {2, 3, 4}


def test_checks_draw_the_same_cases_and_one_that_fails_on_them_still_finds_the_smallest() -> None:
    class Leaks(LeaksOneTokenAhead):
        """Of its own, so that nothing was drawn for it."""

    seen: dict[str, list[Case]] = {"first": [], "again": []}
    for name, cases in seen.items():
        check = replace(CHECKS["card"], name=name, body=lambda mixer, case, to=cases: to.append(case))
        assert run_check(check, Leaks).ran == len(cases)
    assert seen["first"] == seen["again"]
    result = run_check(CHECKS["causality"], Leaks)
    assert result.outcome == "failed"
    assert "'num_layers': 1," in result.snippet
    assert "chunks=(1, 1)," in result.snippet or "chunks=(2,)," in result.snippet
