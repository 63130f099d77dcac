"""The whole run: its tokens, time and memory, and what does not fit is said before it begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mixerzoo import Mixer, load_registry
from mixerzoo.cli import app
from mixerzoo.data import prepare
from mixerzoo.describe.description import describe
from mixerzoo.errors import MixerError, RecipeError
from mixerzoo.process.environment import Launch
from mixerzoo.recipe.feasibility import TrainingMemory, check_data, check_size, free_bytes
from paper_recipes import SEQUENCE, VOCAB, paper_recipe
from runs import tiny_recipe


def test_tokens_of_the_run() -> None:
    recipe = paper_recipe("360M", train={"steps": 30, "batch_size": 4, "accumulation": 2})
    run = describe(recipe).training
    assert (run.tokens, run.tokens_per_step, run.devices) == (30 * 4 * 2 * SEQUENCE, 4 * 2 * SEQUENCE, 1)


def test_the_time_of_a_run_is_its_operations_over_what_the_gpus_reach() -> None:
    recipe = paper_recipe("360M", train={"steps": 30, "precision": "bf16"})
    found = describe(recipe, devices=8, gpu="H100", mfu=0.5)
    assert found.training.flops == 3 * found.costs.flops_per_token * found.training.tokens
    assert found.training.expected.seconds == pytest.approx(found.training.flops / (8 * 0.5 * 989.4e12))
    assert describe(recipe).training.expected is None
    with pytest.raises(RecipeError, match=r"the peak of a GPU 'H1000' is not known; known: .*H100"):
        describe(recipe, gpu="H1000")


def test_epochs_are_those_of_the_text_as_it_was_last_prepared(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("train.steps=2000", "data.source.max_bytes=50000")
    before = describe(recipe).training
    assert (before.text_tokens, before.epochs, before.notices) == (None, None, ())
    data = prepare(recipe.data)
    said = check_data(recipe, data)
    found = describe(recipe).training
    assert found.text_tokens == len(data.train.tokens)
    assert found.epochs == pytest.approx(2000 * 8 * 32 / len(data.train.tokens))
    assert list(found.notices) == said
    assert said[0].startswith("The run reads its text ")
    # Another length is the same text, another sample is not.
    assert describe(tiny_recipe("data.source.max_bytes=50000", "data.sequence_length=16")).training.text_tokens
    assert describe(tiny_recipe("data.source.max_bytes=60000")).training.text_tokens is None


def test_a_text_that_was_never_read_is_read_as_often_at_least_as_its_bound_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    found = describe(tiny_recipe("train.steps=2000", "data.max_tokens=64000")).training
    assert (found.epochs, found.least_epochs) == (None, 2000 * 8 * 32 / 64000)
    assert describe(tiny_recipe()).training.least_epochs is None
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_recipe("train.steps=2000", "data.max_tokens=64000").to_yaml())
    out = CliRunner().invoke(app, ["describe", str(recipe)]).stdout
    assert "8 at least, not known before its first run here" in out


def test_memory_of_training(monkeypatch) -> None:
    recipe = paper_recipe("360M", train={"batch_size": 4})
    found = describe(recipe)
    memory, parameters = found.training.memory, found.costs.parameters
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    # An eighth of the tokens at a time: their scores and log-probabilities.
    assert memory.logits == 4 * SEQUENCE // 8 * VOCAB * 8
    assert memory.activations > memory.logits
    lighter = describe(paper_recipe("360M", train={"batch_size": 4, "activation_checkpointing": True})).training.memory
    assert lighter.activations < memory.activations
    modes = [{"every": 1}, "layers", "selective", {"every": 3}, "none"]
    kept = [
        describe(paper_recipe("360M", train={"batch_size": 4, "activation_checkpointing": mode})).training.memory
        for mode in modes
    ]
    assert [each.activations for each in kept] == sorted(each.activations for each in kept)
    assert kept[0] == kept[1] == lighter
    assert kept[-1] == memory
    assert lighter.optimizer == memory.optimizer
    # What surely does not fit is refused, what may not fit is said.
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.least - 1, "this machine"))
    with pytest.raises(RecipeError, match=r"training needs at least 5\.\d+ GiB \(weights 1\.3.* GiB, gradients"):
        check_size(recipe)
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.least, "this machine"))
    assert check_size(recipe)[0].startswith("Training may need ")
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.total, "this machine"))
    assert check_size(recipe) == []


def test_memory_of_shares() -> None:
    def memory(devices: int, **fsdp: bool) -> TrainingMemory:
        recipe = paper_recipe("360M", train={"batch_size": 4, "parallel": "fsdp", "fsdp": fsdp})
        return describe(recipe, devices).training.memory

    one, eight = memory(1), memory(8)
    plain = describe(paper_recipe("360M", train={"batch_size": 4}), 8).training.memory
    assert (one.weights, plain.gathered) == (plain.weights, 0)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(eight, part) == pytest.approx(getattr(one, part) / 8, abs=2)
    assert (eight.gathered, eight.activations) == (one.gathered, plain.activations)
    assert eight.total < plain.total
    assert eight.gathered < memory(8, reshard_after_forward=False).gathered < 2 * plain.weights


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_decoder_is_built_whole_by_every_process(parallel: str, monkeypatch) -> None:
    recipe = paper_recipe("360M", train={"batch_size": 4, "parallel": parallel})
    whole = 4 * describe(recipe).costs.parameters

    def on_gpus(processes: int, machine: int) -> list[str]:
        monkeypatch.setattr("mixerzoo.recipe.feasibility.launch", lambda: Launch(0, 0, 16, processes))
        monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (1 << 45, "the GPU"))
        monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes_of_machine", lambda: machine)
        return check_size(recipe)

    assert on_gpus(8, 8 * whole) == on_gpus(1, whole) == []
    if parallel == "ddp":
        assert on_gpus(8, whole) == []
    else:
        with pytest.raises(
            RecipeError, match=r"1\.\d+ GiB in each of 8 processes, 1\d\.?\d* GiB in all, .*; start fewer"
        ):
            on_gpus(8, 8 * whole - 1)
    with pytest.raises(
        RecipeError, match=r"shared out: 1\.\d+ GiB, and it has 1\.\d+ GiB free; make the model smaller"
    ):
        on_gpus(1, whole - 1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=5000"], r"train\.batch_size is 5000, but the training text is \d+ sequences of"),
        (
            ["data.tokenizer={name: bpe, vocab_size: 60000}"],
            r"vocab_size is 60000, but the training text has \d+ bytes",
        ),
    ],
)
def test_what_does_not_go_with_the_text(overrides, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("data.source.max_bytes=50000", *overrides)
    with pytest.raises(RecipeError, match=words):
        check_data(recipe, prepare(recipe.data))


def test_a_large_vocabulary_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("data.source.max_bytes=50000", "data.tokenizer={name: bpe, vocab_size: 20000}")
    (large,) = check_data(recipe, prepare(recipe.data))
    assert large.startswith("The vocabulary of ")


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch) -> None:
    limit, used = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr("mixerzoo.recipe.feasibility._CGROUPS", ((limit, used), (tmp_path / "none", used)))
    free = free_bytes()[0]
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    stat = tmp_path / "memory.stat"
    stat.write_text("anon 600000\nfile 400000\nactive_file 0\ninactive_file 0\n")
    assert free_bytes() == (2_000_000, "this machine")
    # Files that were read are dropped where memory is short.
    stat.write_text("anon 600000\nfile 400000\nactive_file 100000\ninactive_file 250000\n")
    assert free_bytes() == (2_350_000, "this machine")
    stat.write_text("inactive_file 1\nactive_file 1\ntotal_inactive_file 250000\ntotal_active_file 150000\n")
    assert free_bytes() == (2_400_000, "this machine")
    limit.write_text("max\n")
    assert free_bytes()[0] == pytest.approx(free, rel=0.5)


def test_what_a_mixer_raises_while_it_is_built_ends_in_words(monkeypatch) -> None:
    def breaks(self: Mixer, *_: Any, **__: Any) -> None:
        raise OverflowError("int too large to convert")

    recipe = paper_recipe("360M", {"name": "residual"})
    monkeypatch.setattr(load_registry().get("residual").mixer, "__init__", breaks)
    with pytest.raises(MixerError, match=r"mixer 'residual' cannot be built .*: OverflowError: int too large"):
        describe(recipe)


def test_what_pytorch_keeps_of_an_earlier_run_is_free(monkeypatch) -> None:
    said = {"is_available": True, "mem_get_info": (1000, 8000), "memory_reserved": 500, "memory_allocated": 200}
    for name, value in said.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert free_bytes() == (1300, "the GPU")
