"""Looped decoders: every mixer runs in one, or refuses it in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from mixerzoo import LoopConfig, MixerError
from zoo import ZooCase, assert_close, some_tokens

LOOPS = {
    "whole": LoopConfig(count=2),
    "body": LoopConfig(prelude=1, coda=1, count=2),
    "prelude": LoopConfig(prelude=3, count=3),
}
#: Registered mixers that have no looped decoder; none so far.
REFUSING: frozenset[str] = frozenset()


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("case", zoo.REGISTERED_CASES, ids=str)
@torch.no_grad()
def test_every_mixer_runs_in_loops_or_refuses_them_in_words(case: ZooCase, loop: LoopConfig) -> None:
    model = {**case.model, "loop": loop}
    if case.mixer in REFUSING:
        with pytest.raises(MixerError, match="loop"):
            zoo.build(case.mixer, case.options, model)
        return
    decoder = zoo.perturb(zoo.build(case.mixer, case.options, model))
    assert len(decoder.plan.order) == 4 + (4 - loop.prelude - loop.coda) * (loop.count - 1)
    tokens = some_tokens(2, 6)
    full = decoder(tokens)
    assert_close(full, zoo.naive_logits(decoder, tokens))
    for max_length in (None, 7):
        cache = decoder.new_cache(2, max_length)
        pieces = [decoder(piece, cache) for piece in tokens.split([2, 1, 3], dim=1)]
        assert_close(torch.cat(pieces, dim=1), full)


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=str)
@torch.no_grad()
def test_a_loop_of_one_is_no_loop(case: ZooCase) -> None:
    def logits(**model: Any) -> torch.Tensor:
        return zoo.make(ZooCase(case.mixer, case.options), **model)(some_tokens(2, 5))

    assert torch.equal(logits(loop=LoopConfig(prelude=1, coda=1, count=1)), logits())
