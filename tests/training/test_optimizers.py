"""Optimisers, groups of parameters, scaling with the width, the mean of the weights, and precisions."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import mixerzoo
from mixerzoo import Mixer, ParameterRole
from mixerzoo.cli import app
from mixerzoo.describe import describe
from mixerzoo.errors import BackendError, MixerError, RecipeError, RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.model import Decoder, ModelConfig, parameter_roles
from mixerzoo.recipe import build, json_schema, kept_of, trained_parameters, training_memory
from mixerzoo.training import precision
from mixerzoo.training.mean_weights import MEAN_FILE, MeanWeights
from mixerzoo.training.optimizers import load_state, make_optimizer
from mixerzoo.training.run import Reporter, train
from mixerzoo.training.state import check_optimizer, check_scheduler
from runs import QUICKSTART, fingerprint, tiny_recipe
from wrong.basis import Scaled

pytestmark = pytest.mark.usefixtures("own_cache")

SHORT = ("train.steps=4", "train.checkpoint_interval=2", "eval.interval=2", "train.log_interval=1")
OPTIMIZERS = ["adamw", "muon", "adafactor", "lion"]
HALVED = [f"{{name: {name}, state_precision: bf16}}" for name in ("adamw", "muon", "lion")]


class Stops(Reporter):
    """Interrupts a run after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        if step == self._step:
            signal.raise_signal(signal.SIGINT)


def interrupted(directory: Path, *overrides: str, step: int = 3) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(*SHORT, *overrides), directory, reporter=Stops(step))
    return directory


def in_words(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        tiny_recipe(*overrides)
    return str(caught.value)


def stepped(*overrides: str, steps: int = 3) -> tuple[Decoder, torch.optim.Optimizer, list[float]]:
    """A decoder after steps on one batch, its optimiser, and the losses."""
    recipe = tiny_recipe("train.learning_rate=0.01", *overrides)
    decoder = build(recipe, dtype=mixerzoo.recipe.weights_dtype(recipe.train.precision))
    optimizer, losses = make_optimizer(recipe, decoder), []
    tokens = torch.randint(0, 257, (4, 17), generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return decoder, optimizer, losses


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


# Groups.


def settings(*overrides: str) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter, as the optimiser has them."""
    recipe = tiny_recipe("train.learning_rate=0.01", *overrides)
    decoder = build(recipe)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    groups = make_optimizer(recipe, decoder).param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


def test_each_group_has_its_rate_and_decay() -> None:
    found = settings(
        "model.tie_embeddings=false",
        "mixer={name: laurel}",
        "train.groups={embedding: {learning_rate_factor: 2, weight_decay: 0}, head: {learning_rate_factor: 3}, "
        "matrices: {weight_decay: 0.3}, vectors: {learning_rate_factor: 4}, "
        "mixer: {learning_rate_factor: 5, weight_decay: 0.5}}",
    )
    assert found["model.embed_tokens.weight"] == (0.02, 0)
    assert found["lm_head.weight"] == (0.03, 0.1)
    assert found["model.layers.1.mlp.gate_proj.weight"] == (0.01, 0.3)
    assert found["model.norm.weight"] == (0.04, 0)
    mixing = {name: each for name, each in found.items() if name.startswith("model.mixer.")}
    assert {each for name, each in mixing.items() if name.endswith((".a", ".b"))} == {(0.05, 0.5)}
    # What the mixer does not let decay stays so.
    assert {each for name, each in mixing.items() if not name.endswith((".a", ".b"))} == {(0.05, 0)}


@pytest.mark.parametrize(
    ("mixer", "group", "said"),
    [
        ("residual", "{learning_rate_factor: 2}", ["train.groups.mixer changes nothing: the mixer residual has no "]),
        ("residual", "{}", []),
        ("denseformer", "{weight_decay: 0.3}", ["train.groups.mixer.weight_decay changes nothing: no parameter of "]),
        ("denseformer", "{learning_rate_factor: 2}", []),
        ("laurel", "{weight_decay: 0.3}", []),
    ],
)
def test_a_group_without_parameters_is_told_and_no_error(mixer: str, group: str, said: list[str]) -> None:
    found = describe(tiny_recipe(f"mixer={{name: {mixer}}}", f"train.groups.mixer={group}")).training.notices
    assert [text[: len(words)] for text, words in zip(found, said, strict=True)] == said


def test_training_tells_once_of_a_group_without_parameters(tmp_path: Path) -> None:
    said: list[str] = []
    hears = Reporter()
    hears.notice = said.append  # type: ignore[method-assign]
    overrides = ("train.steps=1", "mixer={name: residual}", "train.groups.mixer.learning_rate_factor=2")
    train(tiny_recipe(*overrides), tmp_path / "run", reporter=hears)
    assert sum("train.groups.mixer changes nothing" in text for text in said) == 1


def test_a_role_multiplies_the_rate_of_its_group() -> None:
    class Fast(Scaled):
        name = "fast"

        def parameter_roles(self) -> dict[str, ParameterRole]:
            return {"scale": ParameterRole(lr_factor=10.0)}

    recipe = tiny_recipe("train.groups.mixer.learning_rate_factor=0.5")
    decoder = Decoder(ModelConfig(**recipe.model.decoder_config().model_dump() | {"vocab_size": 257}), Fast)
    trained = trained_parameters(recipe, decoder)
    assert trained["model.mixer.scale"].factor == 5.0


def test_a_role_that_calls_a_vector_a_matrix_is_refused() -> None:
    class Wrong(Scaled):
        def parameter_roles(self) -> dict[str, ParameterRole]:
            return {"scale": ParameterRole(matrix=True)}

    model = tiny_recipe().model.decoder_config().model_dump() | {"vocab_size": 257}
    mixer: Mixer = Decoder(ModelConfig(**model), Wrong).mixer
    with pytest.raises(MixerError, match="'scale' says that it is a matrix, and it has"):
        parameter_roles(mixer)


# The width.


def change(width: int, optimizer: str, *, scaled: bool) -> tuple[float, float]:
    """How far hidden states and logits move in four steps, root mean square."""
    recipe = tiny_recipe(
        *(f"model.hidden_size={width}", f"model.intermediate_size={2 * width}", f"model.num_heads={width // 8}"),
        *("model.tie_embeddings=false", "mixer={name: residual}", "train.learning_rate=0.003"),
        f"train.optimizer={optimizer}",
        *(["train.width_scaling={base_hidden_size: 32}"] if scaled else []),
    )
    decoder = build(recipe)
    tokens = torch.randint(0, 257, (8, 17), generator=torch.Generator().manual_seed(0))

    def activations() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return decoder.model(tokens), decoder(tokens)

    before, made = activations(), make_optimizer(recipe, decoder)
    for _ in range(4):
        made.zero_grad()
        decoder.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        made.step()
    hidden, logits = ((a - b).square().mean().sqrt().item() for a, b in zip(activations(), before, strict=True))
    return hidden, logits


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "{name: muon, scale: original}"])
def test_steps_move_a_wide_decoder_as_far_as_a_narrow_one(optimizer: str) -> None:
    narrow, wide = change(32, optimizer, scaled=True), change(256, optimizer, scaled=True)
    assert change(32, optimizer, scaled=False) == narrow
    unscaled = change(256, optimizer, scaled=False)
    assert all(b < 1.1 * a for a, b in zip(narrow, wide, strict=True))
    assert unscaled[0] > 1.2 * narrow[0]
    assert unscaled[1] > 4 * narrow[1]


def test_initial_weights_scale_with_the_width() -> None:
    untied = ("model.tie_embeddings=false", "mixer={name: moda}")
    plain = build(tiny_recipe(*untied)).state_dict()
    scaled = build(tiny_recipe(*untied, "train.width_scaling={base_hidden_size: 8}")).state_dict()
    for name, tensor in plain.items():
        inside = name.startswith("model.layers.") and tensor.ndim == 2
        factor = 0.5 if inside else 0.25 if name == "lm_head.weight" else 1.0
        torch.testing.assert_close(scaled[name], factor * tensor, rtol=1e-6, atol=0)


# The mean of the weights.


def test_the_mean_is_validated_and_saved_and_training_goes_on_without_it(tmp_path: Path) -> None:
    plain, mean = tmp_path / "plain", tmp_path / "mean"
    train(tiny_recipe(*SHORT), plain)
    result = train(tiny_recipe(*SHORT, "train.ema=0.5"), mean)
    weights = [load_file(run / "checkpoints" / "checkpoint-4" / "model.safetensors") for run in (plain, mean)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    means = torch.load(mean / "checkpoints" / "checkpoint-4" / MEAN_FILE, weights_only=True)
    final = load_file(mean / "model.safetensors")
    assert all(torch.equal(final[name], tensor) for name, tensor in means.items())
    assert not torch.equal(final["model.norm.weight"], weights[1]["model.norm.weight"])
    assert evaluate_run(mean)["bits_per_byte"] == result["bits_per_byte"]
    lines = [mixerzoo.read_metrics(run) for run in (plain, mean)]
    assert [line["loss"] for line in lines[0] if "loss" in line] == [
        line["loss"] for line in lines[1] if "loss" in line
    ]
    validations = [[line["validation"] for line in each if "validation" in line] for each in lines]
    assert validations[0] != validations[1]


def test_the_mean_is_the_mean() -> None:
    decoder = build(tiny_recipe(), dtype=torch.bfloat16)
    means = MeanWeights(decoder, 0.25)
    weight = decoder.model.norm.weight
    call: dict[str, Any] = {"args": None, "control": None}
    means.on_train_begin(state=None, **call)  # type: ignore[arg-type]
    for step, value in enumerate((2.0, 3.0), start=1):
        nn.init.constant_(weight, value)
        means.on_step_end(state=SimpleNamespace(global_step=step), **call)  # type: ignore[arg-type]
    # After one step the decay is 2/11, and then it may be 3/12, which is all that was asked for.
    expected = 0.25 * (1 * 2 / 11 + 2 * 9 / 11) + 0.75 * 3
    kept = means.state()["model.norm.weight"]
    torch.testing.assert_close(kept, torch.full_like(kept, expected))
    assert kept.dtype == torch.float32
    with means.within():
        torch.testing.assert_close(weight.float(), kept.bfloat16().float())
    assert weight.eq(3).all()


@pytest.mark.parametrize(
    "damage",
    [lambda means: means.pop("model.norm.weight"), lambda means: means.update({"model.norm.weight": torch.zeros(1)})],
)
def test_a_mean_of_other_weights_is_refused(damage: Any) -> None:
    decoder = build(tiny_recipe())
    means = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    MeanWeights(decoder, 0.5).load_state(means, Path(MEAN_FILE))
    damage(means)
    with pytest.raises(RunError, match=r"ema\.pt: .*remove the checkpoint"):
        MeanWeights(decoder, 0.5).load_state(means, Path(MEAN_FILE))


def test_memory_counts_the_mean() -> None:
    plain, mean = tiny_recipe(), tiny_recipe("train.ema=0.9")
    decoder = build(plain, device="meta")
    without, with_mean = (training_memory(recipe, decoder) for recipe in (plain, mean))
    assert with_mean.average == 4 * sum(decoder.num_parameters())
    assert with_mean.total - without.total == with_mean.least - without.least == with_mean.average


# Precisions.


def test_weights_in_bf16_are_trained_saved_and_resumed(tmp_path: Path) -> None:
    overrides = ("train.precision=bf16_weights", "train.ema=0.5")
    train(tiny_recipe(*SHORT, *overrides), tmp_path / "whole")
    run = interrupted(tmp_path / "run", *overrides)
    result = train(tiny_recipe(*SHORT, *overrides), run, resume=True)
    assert fingerprint(run) == fingerprint(tmp_path / "whole")
    assert {tensor.dtype for tensor in load_file(run / "model.safetensors").values()} == {torch.bfloat16}
    assert evaluate_run(run)["bits_per_byte"] == result["bits_per_byte"]
    assert stepped("train.precision=bf16_weights", steps=4)[2][-1] < 5.4


def test_memory_counts_weights_and_gradients_in_bf16() -> None:
    decoder = build(tiny_recipe(), device="meta")
    wide, narrow = (
        training_memory(tiny_recipe(f"train.precision={name}"), decoder) for name in ("bf16", "bf16_weights")
    )
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(wide, part) == 2 * getattr(narrow, part)
    assert wide.activations == narrow.activations


@pytest.mark.parametrize("name", ["fp16", "float8"])
def test_what_needs_a_gpu_is_refused_without_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=f"train.precision {name} needs a CUDA device.*bf16_weights"):
        train(tiny_recipe(f"train.precision={name}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_float8_needs_a_new_gpu_and_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(BackendError, match=r"capability 8\.9 or more, and A100 has less"):
        precision.check_precision("float8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'pip install "mixerzoo\[float8\]"'):
        precision.check_precision("float8")
    monkeypatch.setattr("importlib.util.find_spec", ModuleType)
    precision.check_precision("float8")
    precision.check_precision("fp16")


def test_float8_multiplies_the_layers_and_can_be_taken_out() -> None:
    pytest.importorskip("torchao", reason='needs torchao: pip install "mixerzoo[float8]"')
    decoder = build(tiny_recipe("model.intermediate_size=40"))
    tokens, names = torch.arange(32).reshape(2, 16), [name for name, _ in decoder.named_parameters()]
    before = decoder(tokens)
    float8 = precision.Float8(decoder, emulate=True)
    # Queries, keys, values and output of each layer; 40 is no multiple of 16.
    assert len(float8) == 8
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert [name for name, _ in decoder.named_parameters()] == names
    assert not torch.equal(decoder(tokens), before)
    with float8.without():
        assert torch.equal(decoder(tokens), before)
    assert not torch.equal(decoder(tokens), before)
    float8.take_out()
    assert torch.equal(decoder(tokens), before)


def test_the_schedule_of_float16_may_lag_behind_its_steps() -> None:
    state = {"base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.1]}
    check_scheduler(state, state, Path("scheduler.pt"), 5, may_lag=True)
    for step, may_lag in ((5, False), (2, True)):
        with pytest.raises(RunError, match="another learning rate or step"):
            check_scheduler(state, state, Path("scheduler.pt"), step, may_lag=may_lag)


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
