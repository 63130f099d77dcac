"""What a decoder is called with and built on: wrong things are refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from case import ZooCase
from mixerzoo import MixerzooError, build, generate
from mixerzoo.errors import BackendError, InputError
from mixerzoo.model.inputs import check_inputs, check_targets

DECODER = zoo.shared(ZooCase("residual"))
TOKENS = zoo.some_tokens(2, 4)
RECIPE: dict[str, Any] = {
    "model": {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 300},
    "mixer": {"name": "residual"},
    "data": {"source": {"name": "stdlib"}, "tokenizer": {"name": "bytes"}, "sequence_length": 8},
    "train": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (TOKENS[0], r"int64 of shape \[4\]; they must be int64 \[batch, tokens\]"),
        (TOKENS[:, :0], r"of shape \[2, 0\].*at least one of each"),
        (TOKENS.float(), r"tokens are torch\.float32"),
        (TOKENS + 100, rf"tokens range from 1\d\d to 1\d\d; the vocabulary has {zoo.VOCAB_SIZE}"),
        (-TOKENS - 1, r"tokens range from -\d+"),
    ],
)
def test_wrong_tokens(tokens: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DECODER(tokens)
    if tokens.ndim == 1:  # to `generate`, a prompt
        assert generate(DECODER, tokens, max_new_tokens=1).shape == (1, len(tokens) + 1)
        return
    with pytest.raises(MixerzooError):
        generate(DECODER, tokens, max_new_tokens=1)


def test_no_step_waits_for_a_device_to_say_its_numbers() -> None:
    # The meta device cannot say them.
    there = {name: given.to("meta") for name, given in (("left_padding", TOKENS[:, 0]), ("documents", TOKENS))}
    for tokens in (TOKENS, TOKENS.to("meta")):
        check_inputs(tokens, zoo.VOCAB_SIZE, cached=False, **there)
        check_targets(TOKENS.to("meta"), tokens, zoo.VOCAB_SIZE)
    with pytest.raises(InputError, match=r"left_padding is torch\.float32 of shape \[2\]"):
        check_inputs(TOKENS, 1, cached=False, left_padding=TOKENS[:, 0].float().to("meta"), documents=None)


@pytest.mark.parametrize("padding", [[4, 0], [-1, 0]])
def test_padding_that_leaves_no_token(padding: list[int]) -> None:
    with pytest.raises(InputError, match=r"in rows of 4 tokens it must be from 0 to 3"):
        DECODER(TOKENS, left_padding=torch.tensor(padding))


@torch.no_grad()
def test_padding_may_be_longer_than_the_first_chunk() -> None:
    padding = torch.tensor([3, 0])
    cache = DECODER.new_cache(2)
    pieces = [DECODER(piece, cache, left_padding=padding) for piece in TOKENS.split(1, dim=1)]
    zoo.assert_close(torch.cat(pieces, dim=1), DECODER(TOKENS, left_padding=padding))


def test_wrong_shapes_beside_tokens() -> None:
    with pytest.raises(InputError, match=r"left_padding is torch\.int64 of shape \[3\]; .* must be int64 \[2\]"):
        DECODER(TOKENS, left_padding=torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match=r"documents is torch\.float32 of shape \[2, 4\]"):
        DECODER(TOKENS, documents=torch.zeros(2, 4))
    with pytest.raises(InputError, match="ascending"):
        DECODER(TOKENS, documents=torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]))


def test_dtypes_and_devices_by_name() -> None:
    assert build(RECIPE, dtype="float64").lm_head.weight.dtype == torch.float64
    with pytest.raises(BackendError, match=r"dtype 'flaot64' \(did you mean 'float64'\?\)"):
        build(RECIPE, dtype="flaot64")
    with pytest.raises(BackendError, match="dtype 'int32'"):
        build(RECIPE, dtype=torch.int32)
    with pytest.raises(BackendError, match="device 'cuda:99' cannot be used here: "):
        build(RECIPE, device="cuda:99")
    with pytest.raises(BackendError, match="device 'gpu' cannot be used here: "):
        build(RECIPE, device="gpu")
