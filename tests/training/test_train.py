"""Training: the same bits every time, what a run leaves, and the Trainer's traps."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mixerzoo
import runs
from mixerzoo.data import TextTokenizer, prepare
from mixerzoo.errors import RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.recipe.read import load_recipe
from mixerzoo.training.arguments import training_arguments
from mixerzoo.training.run import train
from mixerzoo.training.trainer import MixerZooTrainer, SeededOrder, complete_checkpoints
from own import CHOICES, OWN
from runs import OVERRIDES, QUICKSTART, RECORDS, fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_run_leaves_all_that_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "recipe.yaml",
        "run.json",
        "metrics.jsonl",
        "result.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "checkpoints",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    result = json.loads((finished / "result.json").read_text())
    for key in ("bits_per_byte", "perplexity", "bigram_bits_per_byte", "xz_bits_per_byte", "kv_bytes_per_token"):
        assert math.isfinite(result[key])
    assert result["parameters"] == sum(p.numel() for p in mixerzoo.load_checkpoint(finished).parameters())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["step"] for line in lines if "validation" in line] == [6]
    assert load_recipe(finished / "recipe.yaml").model.vocab_size == 257
    run = json.loads((finished / "run.json").read_text())
    assert run["versions"]["torch"].startswith("2.")
    card = (finished / "README.md").read_text()
    assert f"{result['bits_per_byte']:.4f}" in card


def test_the_model_card_s_code_runs(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    code = (finished / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("def ")


def test_training_learns(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert losses[0] > 5  # ln 257 = 5.55: the first steps know nothing


def test_the_same_recipe_twice_gives_the_same_bits(finished, tmp_path):
    torch.manual_seed(12345)  # the global generator has no say
    train(tiny_recipe(), tmp_path / "again")
    assert fingerprint(tmp_path / "again") == fingerprint(finished)


def test_another_seed_gives_other_bits(finished, tmp_path):
    train(tiny_recipe("seed=1"), tmp_path / "other")
    assert fingerprint(tmp_path / "other")["weights"] != fingerprint(finished)["weights"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"loss became .* lower train.learning_rate"):
        train(
            tiny_recipe("train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_fraction=0"),
            tmp_path / "run",
        )


def test_only_the_newest_checkpoints_are_kept(finished):
    assert [step for step, _ in complete_checkpoints(finished / "checkpoints")] == [8, 12]


def test_a_checkpoint_is_a_checkpoint(finished):
    newest = complete_checkpoints(finished / "checkpoints")[-1][1]
    ours, final = mixerzoo.load_checkpoint(newest), mixerzoo.load_checkpoint(finished)
    for name, tensor in final.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


def test_the_trained_weights_are_the_ones_evaluated(finished):
    again = evaluate_run(finished)
    assert len(again.pop("validation_text")) == 64
    result = json.loads((finished / "result.json").read_text())
    assert again == {key: value for key, value in result.items() if key not in RECORDS}


@pytest.mark.parametrize("mixer", OWN)
def test_every_mixer_trains_from_a_recipe(mixer, tmp_path):
    recipe = tiny_recipe(f"mixer={json.dumps(CHOICES[mixer])}", "train.steps=4", "eval.interval=2")
    assert math.isfinite(train(recipe, tmp_path / "run")["bits_per_byte"])


@pytest.mark.parametrize("overrides", [("train.precision=bf16",), ("train.activation_checkpointing=true",)])
def test_precision_and_recomputation_train_alike(overrides, finished, tmp_path):
    result = train(tiny_recipe(*overrides), tmp_path / "run")
    plain = json.loads((finished / "result.json").read_text())
    assert result["loss"] == pytest.approx(plain["loss"], rel=5e-3)
    if overrides == ("train.activation_checkpointing=true",):
        assert fingerprint(tmp_path / "run")["weights"] == fingerprint(finished)["weights"]


def test_accumulation_is_a_larger_batch(finished, tmp_path):
    train(tiny_recipe("train.accumulation=1", "train.batch_size=8"), tmp_path / "run")
    ours, theirs = fingerprint(tmp_path / "run")["metrics"], fingerprint(finished)["metrics"]
    for mine, other in zip(ours, theirs, strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_two_processes_train_like_one(finished, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\nfrom mixerzoo import train\n"
        "from runs import tiny_recipe\nif __name__ == '__main__':\n"
        "    train(tiny_recipe('train.batch_size=2'), Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run"), str(Path(str(runs.__file__)).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = fingerprint(tmp_path / "run"), fingerprint(finished)
    assert ours["result"]["loss"] == pytest.approx(theirs["result"]["loss"], rel=1e-6)
    assert ours["result"]["num_tokens"] == theirs["result"]["num_tokens"]
    assert len(ours["metrics"]) == len(theirs["metrics"])  # one process writes
    for mine, other in zip(ours["metrics"], theirs["metrics"], strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


FINAL = "train.final_learning_rate_fraction=0.1"


def _learning_rates(recipe, tmp_path):
    decoder = mixerzoo.build(recipe)
    trainer = MixerZooTrainer(decoder, recipe, [0] * 100, tmp_path, [])
    trainer.create_optimizer_and_scheduler(recipe.train.steps)
    rates = []
    for _ in range(recipe.train.steps):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "overrides", "expected"),
    [
        ("constant", (), [0, 0.5] + [1] * 8),
        ("cosine", (FINAL,), [0, 0.5] + [0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        ("wsd", (FINAL, "train.decay_fraction=0.4"), [0.1, 0.55] + [1] * 4 + [1, 0.775, 0.55, 0.325]),
    ],
)
def test_schedules(schedule, overrides, expected, tmp_path):
    recipe = tiny_recipe(
        "train.steps=10",
        "train.warmup_fraction=0.2",
        "train.learning_rate=1.0",
        f"train.schedule={schedule}",
        *overrides,
    )
    assert _learning_rates(recipe, tmp_path) == pytest.approx(expected)


def test_the_matrices_of_the_decoder_decay(tmp_path):
    recipe = tiny_recipe("mixer={name: attn_res}")
    trainer = MixerZooTrainer(mixerzoo.build(recipe), recipe, [0] * 100, tmp_path, [])
    trainer.create_optimizer()
    decayed, plain = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == recipe.train.weight_decay
    assert plain["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    total = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    assert total == sum(trainer.decoder.num_parameters())


def test_the_arguments_that_close_the_traps(tmp_path):
    arguments = training_arguments(tiny_recipe(), tmp_path)
    assert arguments.use_cpu == (not torch.cuda.is_available())
    assert not arguments.logging_nan_inf_filter
    # Ours is non-re-entrant and inside the decoder. The oldest transformers has the second name alone.
    assert not getattr(arguments, "activation_checkpointing", False)
    assert not arguments.gradient_checkpointing


def test_the_order_is_a_function_of_the_seed_and_covers_the_data():
    order = list(SeededOrder(10, 25, seed=3))
    assert order == list(SeededOrder(10, 25, seed=3))
    assert order != list(SeededOrder(10, 25, seed=4))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(set(order[20:])) == 5


def test_the_tokenizer_of_the_run_is_the_one_it_was_trained_with(finished):
    data = prepare(tiny_recipe().data)
    assert TextTokenizer.load(finished).encode("déf x") == data.tokenizer.encode("déf x")


def test_overrides_are_those_of_the_quickstart():
    assert QUICKSTART.exists()
    assert tiny_recipe() == load_recipe(QUICKSTART, OVERRIDES)


def test_evaluation_on_other_data_is_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(run | {"data_fingerprint": "0"}))
    with pytest.raises(RunError, match="data changed"):
        evaluate_run(copy)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("mode", ["layers", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_run_that_is_compiled_learns_what_another_does(mode, finished, tmp_path, monkeypatch):
    compiler, compiled = torch.compile, []

    def light(function, **options):
        compiled.append(function.__name__)
        return compiler(function, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", light)
    result = train(tiny_recipe(f"train.compile={mode}"), tmp_path / mode)
    assert compiled == (["_layer", "_attention", "_heads", "_feed"] if mode == "layers" else ["_forward"])
    expected = json.loads((finished / "result.json").read_text())
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-6)
