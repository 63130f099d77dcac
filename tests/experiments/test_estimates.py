"""What a comparison would take, before anything is run."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from mixerzoo.errors import RecipeError
from mixerzoo.experiments import Flags, read_comparison
from mixerzoo.model import default_device
from runs import QUICKSTART
from tiny_comparison import TINY, compare


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_dry_run_lists_and_runs_nothing(tmp_path):
    result = compare(tmp_path / "new", "--mixers", "residual,unet", "--seeds", "2", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    runs = json.loads(result.output)["runs"]
    assert [run["run"] for run in runs] == ["residual, seed 0", "unet, seed 0", "residual, seed 1", "unet, seed 1"]
    assert all(run["tokens"] == 2 * 2 * 32 and run["flops"] > 0 and run["seconds_estimate"] > 0 for run in runs)
    assert not (tmp_path / "new").exists()


def test_a_dry_run_of_what_does_not_fit_lists_it_without_a_time(tmp_path, monkeypatch):
    module = import_module("mixerzoo.experiments.estimates")

    def too_large(recipe):
        if recipe.mixer.name == "unet":
            raise RecipeError("training needs at least 80.0 GiB")
        return []

    monkeypatch.setattr(module, "check_size", too_large)
    result = compare(tmp_path / "new", "--mixers", "residual,unet", "--seeds", "1", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "unet could not be tried here: training needs at least 80.0 GiB" in result.output
    result = compare(tmp_path / "new", "--mixers", "residual,unet", "--seeds", "1", "--dry-run", "--json")
    first, second = json.loads(result.stdout)["runs"]
    assert first["seconds_estimate"] > 0
    assert first["problem"] is None
    assert (second["seconds_estimate"], second["problem"]) == (None, "training needs at least 80.0 GiB")


def test_an_estimate_counts_steps_and_validations(monkeypatch):
    module = import_module("mixerzoo.experiments.estimates")
    monkeypatch.setattr(module, "tokens_per_second", lambda recipe, flops, device: 100.0)
    # A text that was never prepared, so that the size of its final validation is not known.
    found = read_comparison(
        QUICKSTART, [*TINY, "data.source.max_bytes=210001", "eval.interval=1"], Flags(mixers="residual", seeds="1")
    )
    (estimate,) = module.estimates(found, 1)
    trained, scored = 2 * 2 * 32, 5 * 32
    assert estimate.seconds - module._SECONDS_OF_A_RUN == pytest.approx((trained + scored / 3) / 100)


def test_a_plan_is_of_the_devices_that_are_named(tmp_path, monkeypatch):
    asked = []
    module = import_module("mixerzoo.experiments.estimates")
    monkeypatch.setattr(module, "tokens_per_second", lambda recipe, flops, device: asked.append(device) or 100.0)
    for device in ([], ["--device", "cpu"]):
        result = compare(tmp_path / "new", "--mixers", "residual", "--seeds", "1", "--dry-run", *device)
        assert result.exit_code == 0, result.output
    assert asked == [default_device(), "cpu"]
    assert compare(tmp_path / "new", "--mixers", "residual", "--dry-run", "--device", "nowhere").exit_code == 2
