"""The mean of the weights: validated, saved, counted, and no part of the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mixerzoo
from mixerzoo.errors import RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.recipe import build, training_memory
from mixerzoo.training.mean_weights import MEAN_FILE, MeanWeights
from mixerzoo.training.run import train
from optimizing import SHORT
from runs import tiny_recipe

pytestmark = pytest.mark.usefixtures("own_cache")


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
