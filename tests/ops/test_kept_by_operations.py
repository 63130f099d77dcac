"""What operations keep for the backward pass, and from which size on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from case import ZooCase
from mixerzoo import Decoder
from mixerzoo.ops import forms


def test_what_is_kept_for_the_backward() -> None:
    residual = kept(ZooCase("residual"))
    one_source = TOKENS * SIZE * 4
    weights_of_softmax = sum(TOKENS * n * 4 for n in range(2, 2 * LAYERS + 2))
    allowed = {
        ZooCase("denseformer"): LAYERS * one_source,
        # And 1 / rms of each source.
        ZooCase("attn_res"): (2 * LAYERS + 1) * (one_source + TOKENS * 4) + weights_of_softmax,
        # What a layer projects; what it mixes is kept by attention in any case.
        ZooCase("depth_attention", {"stride": 1}): sum(TOKENS * 2 * (16 + n) * 4 for n in range(2, LAYERS + 1)),
    }
    # What its entries are, attention keeps in any case.
    allowed[ZooCase("moda", {"mlp": False})] = 0
    allowed[ZooCase("delta_attn_res")] = allowed[ZooCase("attn_res")]
    variants = [("hc", 24), ("mhc", 24), ("mhc_lite", 2 * 4 + math.factorial(4))]
    cases = [(ZooCase("hyper_connections", {"variant": variant}), logits) for variant, logits in variants]
    for case, logits in [*cases, (ZooCase("krom_hc"), 24)]:
        # Four streams and what is added to them; what is weighed, by logits and weights.
        allowed[case] = 2 * LAYERS * (5 * one_source + TOKENS * (24 + 2 * logits) * 4)
    for case, sources_and_weights in allowed.items():
        assert kept(case) - residual <= 1.1 * sources_and_weights + 0.001 * residual, str(case)


LAYERS, TOKENS, SIZE = 24, 32, 64


def kept(case: ZooCase) -> int:
    """Bytes that autograd keeps of a forward over a decoder of 24 layers, each storage counted once."""
    sizes = {"num_layers": LAYERS, "hidden_size": SIZE, "intermediate_size": 96, "head_dim": 16}
    decoder: Decoder = zoo.make(case, dtype=torch.float32, **sizes)
    mine = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    storages: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in mine:
            # Held, so that no address comes twice.
            storages[storage.data_ptr()] = storage
        return x

    with forms.forced("fused"), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = decoder(zoo.some_tokens(1, TOKENS))
    assert out.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.usefixtures("forms_by_size")
def test_small_sources_are_mixed_by_the_equation_and_large_ones_keep_little() -> None:
    policy = forms.Policy(few=1, compiled=False)
    for elements, expected in ((forms.SMALLEST - 1, "naive"), (forms.SMALLEST, "fused")):
        source = torch.zeros(elements, requires_grad=True)
        assert forms.choose([source] * 3, policy) == expected
        # Nothing is kept, so there is nothing to save.
        assert forms.choose([source.detach()] * 3, policy) == "naive"
        with torch.no_grad():
            assert forms.choose([source] * 3, policy) == "naive"
        assert forms.choose([source.detach()], policy, [source]) == expected
