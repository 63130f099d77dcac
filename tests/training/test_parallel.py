"""Several processes that share out weights or batches: the losses of one process, and checkpoints for any number."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter

import parallel_job
from mixerzoo.checkpoints import load_checkpoint
from mixerzoo.data import verified
from mixerzoo.errors import CheckpointError, RecipeError, RunError
from mixerzoo.files.manifest import difference, read_manifest
from mixerzoo.runs import checkpoints
from mixerzoo.runs.checkpoints import complete_checkpoints
from mixerzoo.runs.directory import RunDirectory
from mixerzoo.training import arguments, parallel, processes, sharded
from mixerzoo.training.interrupts import Terminated
from mixerzoo.training.process_state import process_file, process_state
from mixerzoo.training.run import train
from parallel_job import At
from runs import fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")

FSDP = "train.parallel=fsdp"
#: Training waits for a checkpoint, or goes on.
SHARED = {"before": (FSDP,), "during": (FSDP, "train.async_checkpoints=true")}


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `parallel_job` in several processes."""
    job = str(parallel_job.__file__)
    options = [f"--nproc-per-node={count}", "--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, job, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def curve(directory: Path) -> list[float]:
    """Loss and norm of the gradient of every line."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if "loss" in line for key in ("loss", "grad_norm")]


# Sharded weights.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Two processes that compare some mixers and then train, until one of them is killed."""
    directory = tmp_path_factory.mktemp("two") / "run"
    return torchrun(2, "quick", str(directory)), directory


def test_sharded_mixers_train_as_one_process_does(two) -> None:
    assert two[0].stdout.count("compared") == 2, two[0].stderr


def test_a_process_that_is_killed_ends_the_others_in_words(two) -> None:
    done, directory = two
    assert done.returncode != 0
    assert "Error:\nanother process of the run has ended" in done.stderr, done.stderr
    assert complete_checkpoints(directory / "checkpoints")[-1][0] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "kind"), [(2, "fsdp"), (4, "fsdp"), (2, "fsdp without resharding"), (2, "ddp"), (4, "ddp")]
)
def test_every_mixer_trains_in_several_processes_as_in_one(count: int, kind: str) -> None:
    done = torchrun(count, "compare", kind)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that shards nothing."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    train(tiny_recipe(), directory)
    return directory


@pytest.mark.parametrize("written", ["before", "during"])
def test_one_process_has_all_shares(written: str, alone: Path, tmp_path: Path) -> None:
    directory, recipe = tmp_path / "run", tiny_recipe(*SHARED[written])
    with pytest.raises(Terminated):
        train(recipe, directory, reporter=At(5))
    assert complete_checkpoints(directory / "checkpoints")[-1][0] == 5
    train(recipe, directory, resume=True)
    assert not dist.is_initialized()
    assert fingerprint(directory)["metrics"] == fingerprint(alone)["metrics"]
    assert fingerprint(directory)["weights"] == fingerprint(alone)["weights"]
    # As in any finished run the newest checkpoint alone has the optimizer's state.
    older, newest = (read_manifest(folder)["files"] for _, folder in complete_checkpoints(directory / "checkpoints"))
    assert newest.keys() - older.keys() == {"shard-00001-model-00002-of-00002.safetensors"}
    with pytest.raises(CheckpointError, match="has the shares of a run in the middle, which training alone reads"):
        load_checkpoint(directory / "checkpoints" / "checkpoint-12")


@pytest.mark.parametrize("written", ["before", "during"])
def test_checksums_of_shares_are_those_of_who_wrote_them(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "sha256", lambda path: f"of {path.name}")
    train(tiny_recipe(*SHARED[written], "train.steps=4"), tmp_path / "run")
    ((_, folder),) = complete_checkpoints(tmp_path / "run" / "checkpoints")
    sums = {name: entry["sha256"] for name, entry in read_manifest(folder)["files"].items()}
    assert [name for name in sums if sums[name] == f"of {name}"] == [
        f"shard-00001-model-0000{number}-of-00002.safetensors" for number in (1, 2)
    ]


def test_one_process_of_a_machine_verifies_a_checkpoint(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hashed = RunDirectory(shutil.copytree(alone, tmp_path / "run")), []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**variables, "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        checkpoints, "difference", lambda folder, entries: hashed.append(folder) or difference(folder, entries)
    )

    def newest() -> int:
        verified._seen.clear()  # another process of the launch
        found = checkpoints.newest_whole(run.checkpoints, run.run_id, print, main=False)
        assert found is not None
        return found[0]

    assert [newest(), newest()] == [12, 12]
    assert len(hashed) == 1
    schedule = run.checkpoints / "checkpoint-12" / "scheduler.pt"
    schedule.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(RunError, match=r"scheduler\.pt is empty"):
            newest()
    schedule.unlink()
    with pytest.raises(RunError, match=r"scheduler\.pt is missing"):
        newest()


@pytest.mark.slow
def test_weights_that_stay_gathered_give_the_same_bits(alone: Path, tmp_path: Path) -> None:
    train(tiny_recipe(FSDP, "train.fsdp={reshard_after_forward: false}"), tmp_path / "run")
    assert fingerprint(tmp_path / "run") == fingerprint(alone)


@pytest.mark.parametrize("written", ["before", "during"])
def test_a_disk_that_is_full_while_shares_are_written(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        calls.append(0)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    write = HuggingFaceStorageWriter.write_data
    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", write_data)
    with pytest.raises(RunError, match="process 0 could not write its share: No space left on device"):
        train(tiny_recipe(*SHARED[written]), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-4"]
    monkeypatch.undo()
    assert train(tiny_recipe(*SHARED[written]), tmp_path / "run", resume=True)["steps"] == 12


def test_another_number_of_processes_goes_on(alone: Path, two) -> None:
    _, directory = two
    with pytest.raises(RunError, match=r"2 processes whose steps saw 8 .*\(1 process, .* see 4; set train\.accum.*=4"):
        train(tiny_recipe(FSDP, "train.batch_size=2"), directory, resume=True)
    hears = At()
    train(tiny_recipe(FSDP), directory, resume=True, reporter=hears)
    assert "Going on with 1 process where there were 2." in hears.notices
    assert curve(directory) == pytest.approx(curve(alone), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", *SHARED])
def test_any_number_of_processes_goes_on_with_any_other_s_run(kind: str, alone: Path, tmp_path: Path) -> None:
    directory, sizes = tmp_path / "run", {1: 4, 2: 2, 4: 1}
    for count, stop in ((4, 3), (1, 5), (2, 7), (4, 9), (2, 0)):
        recipe = (*SHARED.get(kind, ()), f"train.batch_size={sizes[count]}")
        done = torchrun(count, "train", str(directory), str(stop), *recipe)
        assert (done.returncode == 0) == (not stop), done.stderr
    assert curve(directory) == pytest.approx(curve(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("variables", "store"),
    [({}, True), ({"WORLD_SIZE": "2"}, False), ({"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "a"}, False)],
    ids=["alone", "several without torchrun", "torchrun"],
)
def test_processes_of_any_launcher_meet(
    variables: dict[str, str], store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[dict[str, Any]] = []
    shared = dist.HashStore()
    monkeypatch.setattr(parallel, "meeting", lambda: shared)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: met.append(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if variables:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with parallel.process_group(tiny_recipe(FSDP)):
        assert [options["store"] is not shared for options in met] == [store]
        assert met[0]["world_size"] == int(variables.get("WORLD_SIZE", "1"))
    monkeypatch.setattr(arguments, "TrainingArguments", lambda **options: SimpleNamespace(n_gpu=0, **options))
    backend = arguments.training_arguments(tiny_recipe(), Path()).ddp_backend
    assert backend == (None if store or torch.cuda.is_available() else "gloo")


def test_a_second_start_does_not_meet_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun keeps one store for all its starts."""
    kept = dist.HashStore()
    monkeypatch.setattr(processes, "rendezvous", lambda address: iter([(kept, 0, 2)]))
    starts = []
    for number in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", number)
        processes.meeting.cache_clear()
        starts.append(processes.meeting())
    processes.meeting.cache_clear()
    starts[0].set("address", "of one that is gone")
    assert starts[0].check(["address"])
    assert not starts[1].check(["address"])


def test_short_weights_compute_what_autocast_does(tmp_path: Path) -> None:
    losses = [
        train(tiny_recipe("train.precision=bf16", *overrides), tmp_path / str(len(overrides)))["loss"]
        for overrides in ((), (FSDP, "train.fsdp={mixed_precision: true}"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.fsdp={}"], "fsdp has no meaning with parallel ddp"),
        ([FSDP, "train.fsdp={mixed_precision: true}"], "mixed_precision gathers weights in bf16, and precision is fl"),
        (["train.async_checkpoints=true"], "async_checkpoints writes what parallel fsdp shares out"),
        ([FSDP, "train.compile=layers", "train.ema=0.9"], "with ema and compile layers; set ema to null and comp"),
        (
            [FSDP, "train.optimizer={name: muon}"],
            "a run with optimizer muon; set optimizer to adamw, or parallel to ddp$",
        ),
        ([FSDP, "train.precision=fp16"], "cannot share a run with precision fp16"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        tiny_recipe(*overrides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_leaves_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no GPU here"):
        train(tiny_recipe(FSDP, "train.fsdp={cpu_offload: true}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_that_cannot_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"processes": 3, "sequences": 9, "files": {}}')
    for overrides, count, words in (
        ((), 2, "go on with a number of processes that divides 9"),
        (("train.batch_size=2",), 3, "so that their product is 3"),
    ):
        recipe = tiny_recipe(*overrides)
        with pytest.raises(RunError, match=words):
            processes.check_step(tmp_path, recipe, recipe, count)


def test_processes_begin_with_the_mean_of_other_ones(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"processes": 2, "sequences": 8, "files": {}}')
    for number in range(2):
        state = {"random": {}, "loss": torch.tensor(1.0 + number), "logged": 4, "records": {"number": number}}
        torch.save(state, process_file(tmp_path, number, 2))
    found, path = process_state(tmp_path, 0, 3, 5)
    assert (float(found["loss"]), found["random"], found["records"]) == (1.5, None, {"number": 0})
    assert path.name == "rng_state_0.pth"
    assert process_state(tmp_path, 1, 2, 5)[0]["records"] == {"number": 1}
