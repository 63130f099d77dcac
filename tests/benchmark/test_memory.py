"""What a benchmark counts of memory, and what a training step computes again in place of keeping it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mixerzoo
from benchmarking import SMALL, invoke, small
from mixerzoo.benchmark import kept_bytes, run_benchmark
from mixerzoo.ops import forms

CPU = torch.device("cpu")


def test_what_autograd_keeps_is_counted_by_storage_while_it_is_kept():
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)

    def forward():
        x.exp()  # keeps its result, and is dropped
        y = -x  # keeps nothing
        z = y @ w  # keeps y and w
        return (z * z.t().t()).sum()  # keeps z, by two views

    assert kept_bytes(forward, CPU) == 4 * (5 * 7 + 5 * 3)
    recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    assert kept_bytes(lambda: recomputed(forward), CPU) == 0
    # What it begins with.
    assert kept_bytes(lambda: recomputed(lambda y: (y @ w).exp().sum(), -x), CPU) == 4 * 5 * 7
    assert kept_bytes(forward, torch.device("meta")) is None


@pytest.mark.parametrize("mixer", ["residual", "attn_res", "hyper_connections"])
@pytest.mark.parametrize("form", ["naive", "fused"])
def test_what_is_kept_is_what_autograd_saves(mixer, form):
    decoder = mixerzoo.build(mixerzoo.load_recipe("quickstart", [*SMALL, f"mixer={{name: {mixer}}}"]))
    tokens = torch.arange(24).view(2, 12)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor.detach()

    with forms.forced(form):
        kept = kept_bytes(lambda: decoder.model(tokens).sum(), CPU)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = decoder.model(tokens).sum()
    for known in (*decoder.parameters(), tokens):
        saved.pop(known.untyped_storage().data_ptr(), None)
    assert result.isfinite()
    assert kept == sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("mode", ["layers", "selective", "{every: 2}"])
def test_a_step_computes_again_what_the_recipe_says(mode):
    plain, again = (
        run_benchmark(small("attn_res", *overrides, phases=["train"]))
        for overrides in ([], [f"train.activation_checkpointing={mode}"])
    )
    assert plain["activation_checkpointing"] == "none"
    assert again["activation_checkpointing"] == ({"every": 2} if mode.startswith("{") else mode)
    for fewer, all_of_them in zip(again["models"], plain["models"], strict=True):
        assert not fewer["failures"]
        assert fewer["kept_bytes"] < all_of_them["kept_bytes"]


def test_a_peer_computes_its_layers_again_or_nothing():
    overrides = ["train.activation_checkpointing=layers"]
    plain, again = (
        run_benchmark(small("residual", *given, peers=["transformers"]))["models"] for given in ([], overrides)
    )
    for before, now in zip(plain, again, strict=True):
        assert not now["failures"]
        assert now["kept_bytes"] < before["kept_bytes"]
    result = invoke("--mixers", "residual", "--peers", "transformers", "train.activation_checkpointing={every: 2}")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "train.activation_checkpointing is {every: 2}, and transformers' models have none and layers alone" in said
    # Nothing is computed again where nothing is trained.
    small("residual", "train.activation_checkpointing=selective", peers=["transformers"], phases=["decode"])


def test_the_table_says_what_is_computed_again():
    shown = invoke("--mixers", "residual", "--phases", "train", "train.activation_checkpointing={every: 2}").stdout
    assert "compile off, activation checkpointing {every: 2}, 1 rounds" in shown
    for arguments in (("--phases", "decode", "train.activation_checkpointing=layers"), ("--phases", "train")):
        assert "checkpointing" not in invoke("--mixers", "residual", *arguments).stdout
