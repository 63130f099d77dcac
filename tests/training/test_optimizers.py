"""Optimisers: what each keeps and gives, and what is refused of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mixerzoo.cli import app
from mixerzoo.errors import RecipeError, RunError
from mixerzoo.recipe import build, json_schema, kept_of, trained_parameters, training_memory
from mixerzoo.training.optimizers import load_state, make_optimizer
from mixerzoo.training.run import train
from mixerzoo.training.state import check_optimizer
from optimizing import OPTIMIZERS, SHORT, interrupted, stepped
from runs import QUICKSTART, fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


HALVED = [f"{{name: {name}, state_precision: bf16}}" for name in ("adamw", "muon", "lion")]


def in_words(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        tiny_recipe(*overrides)
    return str(caught.value)


# Optimisers.


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *HALVED, "{name: adafactor, beta1: 0.9}"])
def test_every_optimizer_learns_and_keeps_what_is_said_of_it(optimizer: str) -> None:
    overrides = (f"train.optimizer={optimizer}", "mixer={name: laurel}")
    decoder, made, losses = stepped(*overrides)
    assert losses[-1] < losses[0] - 0.1
    recipe = tiny_recipe(*overrides)
    state = made.state_dict()["state"]
    parameters = [each for group in made.param_groups for each in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, decoder.parameters()))
    trained = {id(each.parameter): each for each in trained_parameters(recipe, decoder).values()}
    size = 0
    for index, parameter in enumerate(parameters):
        kept = kept_of(recipe, trained[id(parameter)])
        assert state[index].keys() == kept.keys()
        for name, (shape, dtype) in kept.items():
            value = state[index][name]
            if isinstance(value, Tensor):
                assert (tuple(value.shape), value.dtype) == (shape, dtype), name
                size += value.nbytes if shape else 0
            else:
                assert (shape, dtype, type(value)) == ((), torch.int64, int), name
    assert training_memory(recipe, decoder).optimizer == size


def test_muon_has_the_matrices_and_adamw_all_else() -> None:
    decoder, optimizer, _ = stepped("train.optimizer=muon", "mixer={name: laurel}", steps=1)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    by_muon = {names[id(parameter)] for parameter, state in optimizer.state.items() if "momentum_buffer" in state}
    layers = {n for n, p in decoder.named_parameters() if n.startswith("model.layers.") and p.ndim == 2}
    maps = {n for n, _ in decoder.named_parameters() if n.startswith("model.mixer.") and n.endswith((".a", ".b"))}
    assert maps
    assert by_muon == layers | maps


def test_muon_is_that_of_torch_and_adamw_beside_it_has_its_own_rate() -> None:
    options = "train.optimizer={name: muon, momentum: 0.8, nesterov: false, iterations: 3, adamw_learning_rate: 0.002}"
    _, optimizer, _ = stepped(options, "train.groups.mixer.learning_rate_factor=5", "mixer={name: denseformer}")
    rates = {"momentum" in group: set() for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        rates["momentum" in group].add(group["lr"])
        if "momentum" in group:
            found = (group["momentum"], group["nesterov"], group["ns_steps"], group["adjust_lr_fn"])
            assert found == (0.8, False, 3, "match_rms_adamw")
    assert rates == {True: {0.01}, False: {0.002, 0.01}}


def test_state_in_bf16_is_a_rounding_away() -> None:
    for name in ("adamw", "muon", "lion"):
        _, _, full = stepped(f"train.optimizer={name}")
        _, _, half = stepped(f"train.optimizer={{name: {name}, state_precision: bf16}}")
        assert half[0] == full[0]
        assert half != full
        assert half == pytest.approx(full, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adafactor", *HALVED])
def test_a_state_is_loaded_in_its_own_precision(optimizer: str) -> None:
    overrides = (
        f"train.optimizer={optimizer}",
        *(("train.precision=bf16_weights",) if optimizer == "adafactor" else ()),
    )
    decoder, made, _ = stepped(*overrides)
    saved = made.state_dict()
    fresh = make_optimizer(tiny_recipe(*overrides), decoder)
    load_state(fresh, saved)
    loaded = fresh.state_dict()["state"]
    for index, kept in saved["state"].items():
        for name, value in kept.items():
            assert type(loaded[index][name]) is type(value)
            if isinstance(value, Tensor):
                assert loaded[index][name].dtype == value.dtype
                assert torch.equal(loaded[index][name], value)
                assert loaded[index][name].data_ptr() != value.data_ptr()


def test_a_run_that_goes_on_gives_the_same_bits(tmp_path: Path) -> None:
    overrides = ("train.optimizer=muon", "train.ema=0.9")
    train(tiny_recipe(*SHORT, *overrides), tmp_path / "whole")
    run = interrupted(tmp_path / "run", *overrides)
    train(tiny_recipe(*SHORT, *overrides), run, resume=True)
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    with pytest.raises(RunError, match=r"train\.optimizer"):
        train(tiny_recipe(*SHORT), run, resume=True)


@pytest.mark.parametrize(
    ("optimizer", "change", "words"),
    [
        (
            "lion",
            lambda kept: kept.update(exp_avg=kept["exp_avg"].bfloat16()),
            r"bfloat16; it must be .* torch\.float32",
        ),
        ("muon", lambda kept: kept.update(exp_avg=kept.pop("momentum_buffer")), "which is momentum_buffer"),
        ("adafactor", lambda kept: kept.update(step=torch.tensor(1)), "step is .*; it must be"),
        ("adafactor", lambda kept: kept.update(step=9), "has taken 9 steps, and the run 3"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(optimizer: str, change: Callable[[Any], None], words: str) -> None:
    decoder, made, _ = stepped(f"train.optimizer={optimizer}")
    recipe, state = tiny_recipe(f"train.optimizer={optimizer}", "train.learning_rate=0.01"), made.state_dict()
    kept = {id(each.parameter): kept_of(recipe, each) for each in trained_parameters(recipe, decoder).values()}
    check_optimizer(state, make_optimizer(recipe, decoder), Path("optimizer.pt"), 3, kept)
    change(state["state"][0])
    with pytest.raises(RunError, match=words):
        check_optimizer(state, made, Path("optimizer.pt"), 3, kept)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_of_float16_that_all_overflowed_left_no_state(optimizer: str) -> None:
    decoder, made, _ = stepped(f"train.optimizer={optimizer}")
    recipe = tiny_recipe(f"train.optimizer={optimizer}", "train.learning_rate=0.01")
    kept = {id(each.parameter): kept_of(recipe, each) for each in trained_parameters(recipe, decoder).values()}
    # A fused step keeps its state and does not count.
    uncounted = made.state_dict()
    for state in uncounted["state"].values():
        if "step" in state:
            state["step"] = torch.zeros(())
    for state in (make_optimizer(recipe, decoder).state_dict(), uncounted):
        fresh = make_optimizer(recipe, decoder)
        check_optimizer(state, fresh, Path("optimizer.pt"), 3, kept, may_lag=True)
        load_state(fresh, state)
        with pytest.raises(RunError, match=r"other parameters than|has taken 0 steps, and the run 3"):
            check_optimizer(state, fresh, Path("optimizer.pt"), 3, kept)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *HALVED])
def test_a_step_of_float16_that_overflows_is_not_taken(optimizer: str) -> None:
    """Whether it was is how accelerate, and with it the schedule, tells."""
    recipe = tiny_recipe("train.precision=fp16", f"train.optimizer={optimizer}")
    decoder = build(recipe)
    made, scaler, taken = make_optimizer(recipe, decoder), torch.amp.GradScaler("cpu"), []
    step, tokens = made.step, torch.arange(34).reshape(2, 17)
    made.step = lambda closure=None: taken.append(factor) or step(closure)  # type: ignore[method-assign]  # as accelerate
    for factor in (1.0, math.inf, 2.0):
        made.zero_grad()
        scaler.scale(factor * decoder.loss(tokens[:, :-1], tokens[:, 1:])).backward()
        scaler.step(made)
        scaler.update()
    assert taken == [1.0, 2.0]
    assert all(parameter.isfinite().all() for parameter in decoder.parameters())


def test_a_missing_package_is_said_before_any_data_is_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(RunError, match=r'pip install "mixerzoo\[lion\]".*adamw, muon or adafactor'):
        train(tiny_recipe("train.optimizer=lion"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.optimizer=moun"], "unknown name 'moun' (did you mean 'muon'?); known: adamw, muon, adafactor, lion"),
        (["train.optimizer={name: adamw, momentum: 0.9}"], "unknown key; known keys: name, state_precision"),
        (["train.optimizer=[muon]"], "train.optimizer"),
        (["train.optimizer={name: muon, momentum: 1.0}"], "input should be less than 1"),
        (["train.optimizer=lion", "train.beta2=0.98"], "set optimizer={name: lion, beta2: 0.98}"),
        (["train.optimizer=adafactor", "train.beta2=0.98"], "beta2 is AdamW's and has no meaning with adafactor"),
        (
            ["train.optimizer={name: adamw, state_precision: bf16}", "train.beta2=0.999"],
            "or optimizer.state_precision to null",
        ),
        (
            ["train.precision=bf16_weights", "train.beta2=0.999"],
            "override 'train.beta2=0.999': train: beta2 0.999 changes a moment by less than bf16 can hold; set at most "
            "0.99, or precision to bf16",
        ),
        (["train.optimizer={name: adamw, state_precision: bf16}", "train.beta1=0.999"], "train: beta1 0.999 changes a"),
        (["train.precision=bf16_weights", "train.beta1=0.999"], "train: beta1 0.999 changes a"),
        (["train.optimizer={name: muon, state_precision: bf16}", "train.beta1=0.999"], "train: beta1 0.999 changes a"),
        *(
            ([f"train.optimizer={each}", "train.precision=bf16_weights"], "which keeps the state in bf16 already")
            for each in HALVED
        ),
        (["train.optimizer={name: muon, state_precision: bf16, momentum: 0.995}"], "optimizer.momentum 0.995"),
        (["train.optimizer={name: lion, state_precision: bf16, beta2: 0.999}"], "optimizer.beta2 0.999"),
        (["train.groups.head.weight_decay=0", "model.tie_embeddings=true"], "set train.groups.embedding"),
        (["train.groups.vectors.weight_decay=0"], "unknown key"),
        (["train.groups.heads.weight_decay=0"], "did you mean 'head'?"),
        (["train.width_scaling={base_hidden_size: 16}", "model.tie_embeddings=true"], "model.tie_embeddings=false"),
        (["train.ema=1.0"], "input should be less than 1"),
        (["train.precision=bf61"], "none of float32, bf16, bf16_weights, fp16, float8"),
    ],
)
def test_what_means_nothing_is_refused(overrides: list[str], words: str) -> None:
    assert words in in_words(*overrides)


@pytest.mark.parametrize("override", ["train.optimizer=moun", "train.precision=float8", "train.ema=2.0"])
def test_the_command_says_it_with_code_2(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, ["train", str(QUICKSTART), override, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert override.partition("=")[0] in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_editors_are_told_that_a_name_is_an_optimizer() -> None:
    schema = json_schema()
    optimizer = schema["$defs"]["TrainConfig"]["properties"]["optimizer"]
    assert OPTIMIZERS in [each.get("enum") for each in optimizer["anyOf"]]
