"""Training: the same bits every time, also through a kill; files that are never lost; the Trainer's traps."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mixerzoo
import runs
from mixerzoo.data import TextTokenizer, prepare
from mixerzoo.errors import DataError, RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.inference.scoring import score
from mixerzoo.recipe.read import load_recipe
from mixerzoo.training.arguments import training_arguments
from mixerzoo.training.run import train
from mixerzoo.training.trainer import MixerZooTrainer, SeededOrder, complete_checkpoints
from own import CHOICES, OWN
from runs import OVERRIDES, QUICKSTART, RECORDS, fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny_recipe(), directory)
    return directory


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


# Each patch makes the process kill itself, as `kill -9` would, at one moment of the second checkpoint (step 8)
# or elsewhere.
KILL = "import os, signal\ndef kill(*args, **kwargs):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
AT_STEP_8 = "if self.state.global_step == 8: kill()"
MOMENTS = {
    "between checkpoints": """
old = MixerZooTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == 6: kill()
    return old(self, *args, **kwargs)
MixerZooTrainer.training_step = training_step
""",
    "before the first checkpoint": """
old = MixerZooTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == 2: kill()
    return old(self, *args, **kwargs)
MixerZooTrainer.training_step = training_step
""",
    "weights written, optimizer not": f"""
old = MixerZooTrainer._save_optimizer_and_scheduler
def save(self, *args, **kwargs):
    {AT_STEP_8}
    return old(self, *args, **kwargs)
MixerZooTrainer._save_optimizer_and_scheduler = save
""",
    "optimizer half written": """
old = MixerZooTrainer._save_optimizer_and_scheduler
def save(self, output_dir):
    old(self, output_dir)
    if self.state.global_step == 8:
        path = os.path.join(output_dir, "optimizer.pt")
        os.truncate(path, os.path.getsize(path) // 2)
        kill()
MixerZooTrainer._save_optimizer_and_scheduler = save
""",
    "all written, not yet in place": """
from mixerzoo import files
old = files.publish
def publish(partial, path):
    if path.name == "checkpoint-8": kill()
    return old(partial, path)
files.publish = publish
""",
    "while the old checkpoint is removed": """
import shutil
old = shutil.rmtree
def rmtree(path, **kwargs):
    if "checkpoint-4." in str(path):
        os.remove(os.path.join(path, "trainer_state.json"))
        kill()
    return old(path, **kwargs)
shutil.rmtree = rmtree
""",
    "training done, result not written": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.RunDirectory.finish = kill
""",
    "before the first file": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.provenance = kill
""",
    "while the first file is written": """
import mixerzoo.runs.directory
mixerzoo.runs.directory.os.replace = kill
""",
    "before the recipe is written": """
from mixerzoo.data import TextTokenizer
TextTokenizer.save = kill
""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_gives_the_same_bits(moment, finished, tmp_path):
    directory = tmp_path / "killed"
    script = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nimport torch\ntorch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom mixerzoo import train\nfrom mixerzoo.training.trainer import MixerZooTrainer\n"
        f"from runs import tiny_recipe\n{KILL}{MOMENTS[moment]}\n"
        "train(tiny_recipe('train.keep_checkpoints=1'), Path(sys.argv[1]))\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", script, str(directory), str(Path(str(runs.__file__)).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -9, died.stderr
    recipe = tiny_recipe("train.keep_checkpoints=1")
    train(recipe, directory, resume=True)
    assert fingerprint(directory) == fingerprint(finished)
    assert [step for step, _ in complete_checkpoints(directory / "checkpoints")] == [12]
    assert not list(tmp_path.rglob(".*"))


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    result = train(tiny_recipe(), finished, resume=True)
    assert result == json.loads((finished / "result.json").read_text())
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_resume_with_another_recipe_is_refused_and_names_the_keys(finished):
    with pytest.raises(RunError, match=r"train\.learning_rate: was 0\.003, now 0\.1"):
        train(tiny_recipe("train.learning_rate=0.1"), finished, resume=True)
    with pytest.raises(RunError, match=r"mixer\.name: was depth_attention, now residual"):
        train(tiny_recipe("mixer={name: residual}"), finished, resume=True)


def test_resume_with_other_data_is_refused(finished, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("recipe.yaml", "run.json"):
        (copy / name).write_text((finished / name).read_text())
    run = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(run | {"data_fingerprint": "0"}))
    with pytest.raises(RunError, match="data changed"):
        train(tiny_recipe(), copy, resume=True)


def test_a_run_is_never_overwritten_unasked(finished):
    before = fingerprint(finished)
    with pytest.raises(RunError, match=r"--resume.*--overwrite"):
        train(tiny_recipe(), finished)
    assert fingerprint(finished) == before


def test_overwrite_replaces_a_run_but_nothing_else(finished, tmp_path):
    directory = tmp_path / "run"
    train(tiny_recipe("train.steps=2", "train.checkpoint_interval=2"), directory)
    mine = [directory / "note.txt", directory / "checkpoints" / "notes", directory / "plots" / "checkpoint-2"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    beside = [tmp_path / ".run.old", tmp_path / ".run.new"]
    for path in beside:
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    train(tiny_recipe(), directory, overwrite=True)
    assert fingerprint(directory) == fingerprint(finished)
    assert [step for step, _ in complete_checkpoints(directory / "checkpoints")] == [8, 12]
    assert all(path.read_text() == "mine" for path in mine)
    assert all((path / "thesis.tex").exists() for path in beside)

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="does not hold a run"):
        train(tiny_recipe(), precious, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "years of work"

    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="not a directory"):
        train(tiny_recipe(), file, overwrite=True)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(RunError, match="exclude"):
        train(tiny_recipe(), tmp_path / "run", resume=True, overwrite=True)


def test_a_recipe_that_cannot_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError):
        train(tiny_recipe("data.source={name: text, paths: [nowhere.txt]}"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


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


def test_the_tokenizer_of_the_run_is_the_one_it_was_trained_with(finished):
    data = prepare(tiny_recipe().data)
    assert TextTokenizer.load(finished).encode("déf x") == data.tokenizer.encode("déf x")


def test_overrides_are_those_of_the_quickstart():
    assert QUICKSTART.exists()
    assert tiny_recipe() == load_recipe(QUICKSTART, OVERRIDES)


def test_a_recipe_of_the_user_s_own_does_not_make_a_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="does not hold a run"):
        train(tiny_recipe(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


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
