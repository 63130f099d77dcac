"""Weights in bf16, float16 and float8: trained where they can be, and refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from mixerzoo.errors import BackendError, RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.recipe import build, training_memory
from mixerzoo.training import precision
from mixerzoo.training.run import train
from mixerzoo.training.state import check_scheduler
from optimizing import SHORT, interrupted, stepped
from runs import fingerprint, tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


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
