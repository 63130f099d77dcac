"""Scores are exact, of all tokens and of a part of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mixerzoo
from mixerzoo.errors import DataError
from mixerzoo.inference.scoring import score
from runs import tiny_recipe


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 100])
def test_the_score_is_exact(batch_size, num_tokens):
    recipe = tiny_recipe()
    decoder = mixerzoo.build(recipe, dtype=torch.float64)
    tokens = np.random.default_rng(0).integers(0, 257, num_tokens)
    result = score(decoder, tokens, sequence_length=32, start_token=256, num_bytes=num_tokens, batch_size=batch_size)
    stream = [256, *tokens.tolist()]
    nll = 0.0
    for i, target in enumerate(tokens.tolist()):
        window = stream[i // 32 * 32 : i + 1]
        with torch.no_grad():
            nll -= decoder(torch.tensor([window]))[0, -1].log_softmax(-1)[target].item()
    assert result.num_tokens == num_tokens
    assert result.nll == pytest.approx(nll, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(nll / num_tokens), rel=1e-12)
    assert result.bits_per_byte == pytest.approx(nll / math.log(2) / num_tokens, rel=1e-12)


def test_a_part_of_the_stream_is_spread_over_it_and_claims_no_bits_per_byte():
    decoder = mixerzoo.build(tiny_recipe(), dtype=torch.float64)
    tokens = np.arange(200) % 257
    part = score(decoder, tokens, sequence_length=10, start_token=256, num_bytes=200, max_sequences=3)
    assert part.num_tokens == 30
    assert part.bits_per_byte is None
    assert "bits_per_byte" not in part.to_dict()
    with pytest.raises(DataError, match="no tokens"):
        score(decoder, tokens[:0], sequence_length=10, start_token=256)
