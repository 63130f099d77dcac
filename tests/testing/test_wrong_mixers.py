"""The conformance kit catches wrong mixers, each by the check meant for it, and lets right ones pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import Tensor, nn

import zoo
from mixerzoo import Mixer
from mixerzoo.errors import MixerzooError
from mixerzoo.testing import CHECKS, Case, Reference, check_mixer, checks_for, failure_text, rerun, run_check
from mixerzoo.testing.drawn_options import choices
from mixerzoo.testing.ordinary import ORDINARY, default_options, ordinary_cases
from mixerzoo_plugins.residual import Residual
from wrong import CORRECT, REFERENCES, WRONG, accounting, method, precision, purity, training
from wrong.sequence import CountsBlocks, LeaksOneTokenAhead


def some_are_slow() -> list[Any]:
    """All wrong mixers; of those that are wrong in the same kind of way for the same check, one runs by default."""
    seen: set[tuple[str, str]] = set()
    found = []
    for mixer, check in WRONG.items():
        kind = (mixer.__module__, check)
        found.append(pytest.param(mixer, marks=pytest.mark.slow) if kind in seen else pytest.param(mixer))
        if mixer.__module__.partition(".")[2] in BEYOND:
            seen.add(kind)
    return found


#: The right ones that run by default: one with hooks and a memory, one with a tail.
BY_DEFAULT = [mixer for mixer in CORRECT if mixer.name in ("depth_attention", "remembering")]

#: The files of wrong mixers that only large decoders, other modes and the like show.
BEYOND = ("declarations", "devices", "modes", "numbers", "process", "sizes")


@pytest.mark.parametrize("mixer", some_are_slow(), ids=lambda mixer: mixer.__name__)
def test_wrong_mixer_is_caught(mixer: type[Mixer]) -> None:
    check = CHECKS[WRONG[mixer]]
    result = run_check(check, mixer, reference=REFERENCES.get(mixer), shrink=False)
    assert result.outcome == "failed"
    assert result.message.strip()
    text = failure_text(result)
    assert text.startswith(f"clause {check.clause} ({check.name}): {check.summary}\n{result.message}")
    # The snippet fails again, in the same words.
    with pytest.raises(Exception) as caught:  # noqa: PT011  as wrong mixers fail in any way
        exec(result.snippet, {})
    said = str(caught.value)
    assert said.splitlines()[0][:60] in result.message


@pytest.mark.parametrize(
    "mixer",
    [pytest.param(mixer, marks=[] if mixer in BY_DEFAULT else pytest.mark.slow) for mixer in CORRECT],
    ids=lambda mixer: mixer.name,
)
@pytest.mark.parametrize("name", sorted(set(WRONG.values()) - {"compiles"}))
def test_right_mixer_passes(name: str, mixer: type[Mixer]) -> None:
    reference = zoo.reference(mixer.name) if mixer.name in zoo.NAIVE else None
    result = run_check(CHECKS[name], mixer, reference=reference)
    assert result.ok, failure_text(result)


def test_right_mixer_compiles() -> None:
    result = run_check(CHECKS["compiles"], CORRECT[0])
    assert result.ok, failure_text(result)


def test_smallest_case_is_small() -> None:
    result = run_check(CHECKS["causality"], LeaksOneTokenAhead)
    assert "'num_layers': 1," in result.snippet
    assert "batch_size=1," in result.snippet
    assert any(f"chunks={chunks}," in result.snippet for chunks in ("(2,)", "(1, 1)"))


def test_what_only_fails_in_a_long_sequence_shrinks_too() -> None:
    result = run_check(CHECKS["cached_decoding"], CountsBlocks)
    assert "'num_layers': 1," in result.snippet
    assert "chunks=(11, 1)," in result.snippet


class Fused(Residual):
    """Correct: attends over sixteen earlier outputs and convolves them, with PyTorch's fused functions."""

    name = "fused"

    def finish(self, state: Tensor) -> Tensor:
        keys = state.unsqueeze(-2).expand(*state.shape[:-1], 16, -1)
        attended = nn.functional.scaled_dot_product_attention(state.unsqueeze(-2), keys, keys).squeeze(-2)
        flat = attended.flatten(0, 1).unsqueeze(1)
        return nn.functional.conv1d(flat, state.new_ones(1, 1, 31), padding=15).view_as(state)

    def flops_per_token(self) -> int:
        return (2 * 2 * 16 + 2 * 31) * self.shape.hidden_size


def test_fused_operations_are_counted_for_what_they_do() -> None:
    result = run_check(CHECKS["flops"], Fused)
    assert result.ok, failure_text(result)


def test_every_choice_of_an_option_is_in_a_case_that_is_not_drawn() -> None:
    for name in zoo.REGISTERED:
        mixer = zoo.mixer_class(name)
        cases, needed = ordinary_cases(mixer), default_options(mixer.Config)
        assert cases[0].options == needed
        for option, values in choices(mixer.Config).items():
            if option in needed:
                continue
            seen = [case.options.get(option) for case in cases]
            # What the mixer refuses together with the defaults comes by drawing.
            refused = [v for v in values if not alone(mixer, {option: v})]
            assert [v for v in values if v not in seen and v not in refused] == []


def alone(mixer: type[Mixer], options: dict[str, Any]) -> bool:
    try:
        Case(ORDINARY[0], {**default_options(mixer.Config), **options}).decoder(mixer)
    except (MixerzooError, ValidationError):
        return False
    return True


def test_every_check_has_its_wrong_mixer() -> None:
    # No mixer reaches the decoder's weights, and sharding is slow.
    assert set(CHECKS) - set(WRONG.values()) <= {"skeleton_untouched", "shards"}


def test_without_a_reference_its_clauses_are_skipped_and_say_so() -> None:
    needing = [name for name, check in CHECKS.items() if check.needs]
    assert [CHECKS[name].clause for name in needing] == ["10.1", "10.2", "10.3", "10.4", "10.5", "10.6", "10.7"]
    results = check_mixer(CORRECT[0], only=needing)
    assert {(result.outcome, result.message, result.ok) for result in results} == {
        ("skipped", "no reference was given", True)
    }
    # Nor is a skip an unexpected pass.
    (result,) = check_mixer(CORRECT[0], only=needing[:1], expected_failures={needing[0]: "an example"})
    assert result.outcome == "skipped"
    silent = Reference(zoo.reference("residual").begin)
    results = check_mixer(CORRECT[0], only=needing, reference=silent)
    assert [result.message for result in results] == [
        "",
        "the reference gives no in_flight_bytes or flops_per_token or sources or plan or roles",
        "the reference gives no checkpoints",
        "the reference gives no initial",
        "the reference gives no cases",
        "the reference gives no refused",
        "the reference gives no shown",
    ]
    with pytest.raises(MixerzooError, match="'reference_start' cannot run: the reference gives no initial"):
        rerun("reference_start", CORRECT[0], Case(), silent)


def test_the_snippet_of_a_reference_that_cannot_be_imported_says_where_it_belongs() -> None:
    mixer = next(iter(REFERENCES))
    result = run_check(CHECKS["reference_logits"], mixer, reference=Reference(REFERENCES[mixer].begin), shrink=False)
    assert "from your_tests import reference\n" in result.snippet
    assert f"rerun('reference_logits', {mixer.__name__}, case, reference)" in result.snippet


def test_a_slow_check_that_is_asked_for_is_not_passed_over() -> None:
    with pytest.raises(MixerzooError, match="the check 'shards' is slow and runs only in the thorough profile"):
        check_mixer(CORRECT[0], only=["shards"])


def test_checks_are_in_the_order_of_their_clauses() -> None:
    numbers = [[int(part) for part in check.clause.split(".")] for check in CHECKS.values()]
    assert numbers == sorted(numbers)
    assert checks_for(CORRECT[0], "thorough") == list(CHECKS.values())


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (purity.ForgetsToReturn, r"write at Site\(step=0, layer=0, branch='attention'\) returned None"),
        (
            purity.ReadsOneChannel,
            r"read at Site\(step=0, layer=0, branch='attention'\) returned a bfloat16 tensor \[1, 2, 1\], expected a "
            r"bfloat16 tensor \[1, 2, 8\]",
        ),
        (purity.RebindsItsState, "start: the state is a Holder, expected a tensor or a .named. tuple of tensors"),
        (training.AppendsToState, "start: the state.outputs is a list, expected a tensor or a .named. tuple of "),
        (purity.DropsTheState, r"mix_kv at Site\(.*\) returned 2 things, expected state, k and v"),
        (purity.SharesOneValueHead, r"mix_kv at Site\(.*\): v returned a bfloat16 tensor \[1, 1, "),
        (purity.FinishesOneToken, r"finish returned a bfloat16 tensor \[1, 1, 8\], expected .* \[1, 2, 8\]"),
        (precision.ReturnsWrongDtype, r"read at .* returned a float32 tensor \[1, 2, 8\], expected a bfloat16 "),
        (precision.SplitsInputsOfTheMlp, r"read at Site\(.*'mlp'\) returned AttentionInputs, expected one tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_return_is_named_with_its_call_and_site(mixer: type[Mixer], message: str) -> None:
    result = run_check(CHECKS["returns"], mixer)
    assert result.outcome == "failed"
    assert re.search(message, result.message), result.message


def test_a_constructor_that_fails_leaves_a_case_to_paste() -> None:
    result = run_check(CHECKS["causality"], precision.DividesByDepth)
    assert result.message == "ZeroDivisionError: division by zero"
    assert "rerun('causality', DividesByDepth, case)" in result.snippet


def test_a_wrong_figure_of_bytes_in_flight_names_what_is_counted() -> None:
    result = run_check(CHECKS["in_flight_bytes"], accounting.DeclaresOneStream)
    counted = r"state\.x \[1, 2, 8\] float32, 64 bytes; state\.history\[0\] \[1, 2, 8\] float32, 64 bytes"
    words = rf"that of 2 tokens is largest after write at Site\(step=0, layer=0, branch='attention'\): {counted}"
    assert re.search(words, result.message), result.message
    # Also where the mixer and its reference agree on no figure.
    result = run_check(CHECKS["reference_accounts"], method.HoldsABitMore, reference=REFERENCES[method.HoldsABitMore])
    assert re.search(
        r"counts \d+; a state of one token is largest after write at .*: state\.x \[1, 1, ", result.message
    )


def test_what_norms_in_bf16_is_told_with_its_line() -> None:
    result = run_check(CHECKS["wide_norms"], precision.NormsInBf16)
    (line,) = re.findall(r"line (\d+): `.*rsqrt", result.message)
    where = rf"\(precision\.py, line {line}: `return .*mean\(-1, keepdim=True\).*`\)"
    assert re.fullmatch(rf"finish computes mean {where} and rsqrt {where} in bf16", result.message), result.message
    assert "rsqrt" in Path(precision.__file__).read_text(encoding="utf-8").splitlines()[int(line) - 1]
