"""A mixer whose steps write one slot in turn is held to every clause on looped decoders, which go token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adhoc import Rewriting
from mixerzoo import AttentionCall, AttentionState, MixingWeights, Site
from mixerzoo.testing import Case, against, parametrize_with_checks, rerun
from naive.rewriting import REFERENCE

MODEL = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
CASE = Case({**MODEL, "loop": {"prelude": 1, "coda": 1, "count": 3}}, chunks=(3, 1, 2))


def in_flight_bytes(mixer: Any, dtype: torch.dtype) -> int:
    """The stream, and keys and values of each layer."""
    shape = mixer.shape
    return (shape.hidden_size + 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim) * dtype.itemsize


def flops_per_token(mixer: Any) -> int:
    """Half of a key and half of a value are added in each run of a layer but its first."""
    shape = mixer.shape
    return 2 * 2 * shape.num_kv_heads * shape.head_dim * (len(shape.order) - shape.num_layers)


def plan(mixer: Any) -> dict[str, Any]:
    """The slot of each layer is that of its first run."""
    slots = tuple(mixer.shape.order.index(layer) for layer in mixer.shape.order)
    return {"k_writes": slots, "v_writes": slots, "needs_own_kv": True}


HELD = replace(REFERENCE, in_flight_bytes=in_flight_bytes, flops_per_token=flops_per_token, plan=plan, cases=(CASE,))


@pytest.mark.slow
@parametrize_with_checks([Rewriting], references={Rewriting: HELD})
def test_it_is_not_blamed(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("clause", ["3.5", "4.1", "4.2", "4.4", "6.3", "6.5", "10.1", "10.2", "10.5"])
def test_it_is_not_blamed_on_a_looped_decoder(clause: str) -> None:
    rerun(clause, Rewriting, CASE, HELD)


class CountsRuns(Rewriting):
    """Its card has a slot for each run."""

    card = replace(Rewriting.card, kv_bytes="2·L·G·d·e")


class ForgetsValues(Rewriting):
    """Declares the stream and the keys."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return super().in_flight_bytes(dtype) - self.shape.num_kv_heads * self.shape.head_dim * dtype.itemsize


class Drops(Rewriting):
    """Stores no values of its last run."""

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        state, k, v = super().mix_kv(state, call)
        return state, k, v if call.site.layer in self.shape.order[call.site.step + 1 :] else torch.zeros_like(v)


@pytest.mark.parametrize(
    ("mixer", "clause", "words"),
    [
        (CountsRuns, "4.1", "the card says 2·L·G·d·e = 512.0 bytes per token, the plan 256"),
        (ForgetsValues, "4.2", "that of 2 tokens is largest after mix_kv at "),
        (Drops, "10.1", "logits against the reference's"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_that_is_wrong_is_blamed(mixer: type[Rewriting], clause: str, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        rerun(clause, mixer, CASE, HELD)
    assert words in str(caught.value)


def test_what_is_stored_of_each_token_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = against.trace

    def off_at_first(*given: Any) -> Any:
        found = traced(*given)
        found.values[1][0][0].add_(1e-6)
        return found

    monkeypatch.setattr("mixerzoo.testing.checks.reference.trace", off_at_first)
    with pytest.raises(AssertionError, match="stored values of step 1 against the reference's: differs by 1e-06"):
        rerun("10.1", Rewriting, CASE, HELD)


class ShowsItsRuns(Rewriting):
    """Shows how values come about; its own value is shown as two shares, which depend on the token."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        before = state.memory[site.layer] if len(state.memory) > site.layer else None
        if call is None or before is None:
            return None
        share = call.v[..., :1].sigmoid()
        weights = torch.cat([share, 1 - share, torch.full_like(share, -0.5)], dim=-1)
        return MixingWeights(weights, (call.v, call.v, before[1]))


class ShowsTheWrongSign(ShowsItsRuns):
    """As if what the run before wrote were added."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and shown._replace(weights=shown.weights.abs())


def test_weights_are_those_of_the_token_of_a_call() -> None:
    rerun("mixing_weights", ShowsItsRuns, CASE)
    with pytest.raises(AssertionError, match="weights applied to their sources"):
        rerun("mixing_weights", ShowsTheWrongSign, CASE)
