"""What a run says it has cost: by hand, over a resume, and apart from what is no training."""

from __future__ import annotations

import json
import time

import pytest
import torch

import mixerzoo
from mixerzoo.errors import RunError
from mixerzoo.model import flops_per_token
from mixerzoo.process import peak_of
from mixerzoo.training import hardware, run_callback
from mixerzoo.training.records import Records
from mixerzoo.training.run import Reporter, train
from runs import RECORDS, tiny_recipe

CPU = torch.device("cpu")
#: Of the tiny recipe: batch × accumulation × sequence.
TOKENS_PER_STEP = 4 * 2 * 32


pytestmark = pytest.mark.usefixtures("own_cache")


class Stop(Reporter):
    def step(self, step, loss, tokens_per_second):
        if step == 7:
            raise KeyboardInterrupt


def test_the_records_of_a_run(tmp_path):
    result = train(tiny_recipe("seed=3"), tmp_path / "run")
    assert set(RECORDS) <= result.keys()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train_flops"] == result["train_flops"]
    assert (result["seed"], result["device"], result["devices"]) == (3, "cpu", 1)
    assert result["threads"] == torch.get_num_threads()
    assert result["tokens"] == 12 * TOKENS_PER_STEP
    decoder = mixerzoo.load_checkpoint(tmp_path / "run")
    assert result["train_flops"] == 3 * flops_per_token(decoder, 32) * result["tokens"]
    assert result["mfu"] is None
    # This process holds PyTorch, and the machine has less than a TiB.
    assert 1e8 < result["peak_memory_bytes"] < 1e12
    lines = mixerzoo.read_metrics(tmp_path / "run")
    assert [line["tokens"] for line in lines] == [line["step"] * TOKENS_PER_STEP for line in lines]
    assert all(set(RECORDS) - {"steps"} <= line.keys() for line in lines)
    for key in ("train_seconds", "validation_seconds", "train_flops", "peak_memory_bytes"):
        figures = [line[key] for line in lines] + [result[key]]
        assert figures == sorted(figures), key
    assert lines[0]["validation_seconds"] == 0 < lines[-1]["validation_seconds"] < result["validation_seconds"]


def test_seconds_of_training_and_of_validation_are_apart(tmp_path, monkeypatch):
    old = run_callback.score

    def slow(*arguments, **options):
        time.sleep(0.5)
        return old(*arguments, **options)

    monkeypatch.setattr(run_callback, "score", slow)
    began = time.monotonic()
    result = train(tiny_recipe("train.steps=4", "eval.interval=1"), tmp_path / "run")
    whole = time.monotonic() - began
    assert result["validation_seconds"] > 4 * 0.5
    assert 0 < result["train_seconds"] < whole - result["validation_seconds"]


def test_a_resumed_run_goes_on_counting(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "run", reporter=Stop())
    state = torch.load(tmp_path / "run" / "checkpoints" / "checkpoint-4" / "rng_state.pth", weights_only=True)[
        "records"
    ]
    assert state["steps"] == 3  # the first is no part of the speed
    assert state["first_seconds"] > 0
    result = train(tiny_recipe(), tmp_path / "run", resume=True)
    lines = mixerzoo.read_metrics(tmp_path / "run")
    assert [line["tokens"] for line in lines] == [line["step"] * TOKENS_PER_STEP for line in lines]
    seconds = [line["train_seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert result["train_seconds"] > state["first_seconds"] + state["seconds"]
    assert result["tokens"] == 12 * TOKENS_PER_STEP


def test_records_that_are_none_are_refused(tmp_path):
    recipe = tiny_recipe("model.vocab_size=257")
    records = Records(recipe, mixerzoo.build(recipe, device="meta"), CPU, 1)
    good = {"steps": 3, "seconds": 2.0, "first_seconds": 1.0, "validation_seconds": 5.0, "peak_memory": 1 << 50}
    records.load_state(good, tmp_path)
    figures = records.after(4)
    assert (figures["train_seconds"], figures["validation_seconds"], figures["peak_memory_bytes"]) == (3, 5, 1 << 50)
    assert figures["tokens_per_second"] == 1.5 * TOKENS_PER_STEP
    for bad in ({}, {**good, "steps": 1.5}, {**good, "more": 1}):
        with pytest.raises(RunError, match="records of a run's costs"):
            records.load_state(bad, tmp_path)


def test_the_share_of_the_peak_is_operations_over_what_all_devices_could_do(monkeypatch, tmp_path):
    monkeypatch.setattr("mixerzoo.training.records.peak_flops", lambda device, precision: 1e9)
    recipe = tiny_recipe("model.vocab_size=257")
    decoder = mixerzoo.build(recipe, device="meta")
    records = Records(recipe, decoder, CPU, 2)
    state = {"steps": 10, "seconds": 4.0, "first_seconds": 1.0, "validation_seconds": 0.0, "peak_memory": 0}
    records.load_state(state, tmp_path)
    done = 2 * TOKENS_PER_STEP * 10 * 3 * flops_per_token(decoder, 32)
    assert records.after(10)["mfu"] == pytest.approx(done / 4 / 2e9, abs=1e-4)
    assert records.after(10)["train_flops"] == done


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("NVIDIA GH200 480GB", None, None),
        ("NVIDIA A100X", None, None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_name(name, bf16, float32):
    assert peak_of(name, "bf16") == pytest.approx(bf16)
    assert peak_of(name, "float32") == pytest.approx(float32)


def test_the_peak_of_the_memory_counts_from_where_it_is_reset():
    hardware.reset_peak_memory(CPU)
    before = hardware.peak_memory_bytes(CPU)
    # Large beside what the system may take back meanwhile.
    block = torch.ones(512 << 20, dtype=torch.uint8)
    assert hardware.peak_memory_bytes(CPU) >= before + (48 << 20)
    del block
    assert hardware.peak_flops(CPU, "bf16") is None
