"""What a recipe names as trackers hears every number of metrics.jsonl, and nothing else hears any."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import transformers

import mixerzoo
from mixerzoo.errors import RecipeError, RunError
from mixerzoo.runs import RunDirectory
from mixerzoo.training import trackers
from mixerzoo.training.run import Reporter, train
from runs import fingerprint, tiny_recipe

tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs mixerzoo[tensorboard]")
trackio = pytest.mark.skipif(find_spec("trackio") is None, reason="needs mixerzoo[trackio]")


@pytest.fixture(scope="module", autouse=True)
def _places(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        # It reads them as it is imported.
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


class Stop(Reporter):
    def step(self, step, loss, tokens_per_second):
        if step == 7:
            raise KeyboardInterrupt


def in_two_parts(recipe, directory) -> None:
    """A run that was cut off after a line that no checkpoint has."""
    with pytest.raises(KeyboardInterrupt):
        train(recipe, directory, name="first/residual", reporter=Stop())
    train(recipe, directory, name="first/residual", resume=True)


def expected(directory) -> dict[str, dict[int, float]]:
    """Name → step → number, of the files of a run."""
    found: dict[str, dict[int, float]] = {}

    def note(step, prefix, figures):
        for key, value in figures.items():
            if isinstance(value, int | float) and key != "step":
                found.setdefault(prefix + key, {})[step] = value

    for line in mixerzoo.read_metrics(directory):
        note(line["step"], "train/", line)
        note(line["step"], "eval/", line.get("validation", {}))
    result = RunDirectory(directory).result()
    final = ("loss", "perplexity", "bits_per_byte")
    note(12, "eval/final_", {key: result[key] for key in final})
    return found


@tensorboard
def test_tensorboard_has_every_number_and_a_resumed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain, tracked = tmp_path / "plain", tmp_path / "tracked"
    in_two_parts(tiny_recipe(), plain)
    in_two_parts(tiny_recipe("train.trackers=[tensorboard]"), tracked)
    same, other = fingerprint(plain), fingerprint(tracked)
    assert {key: same[key] for key in same if "recipe" not in key} == {
        key: other[key] for key in other if "recipe" not in key
    }
    events = EventAccumulator(str(tracked / "tensorboard"))
    events.Reload()
    for name, numbers in expected(tracked).items():
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert dict(told) == pytest.approx(numbers, rel=1e-6), name
        assert len(told) == len(dict(told)) or name.startswith("train/"), name
    assert len(events.Scalars("train/loss")) == len(expected(tracked)["train/loss"]) == 6
    assert "depth_attention" in str(events.Tensors("model_config/text_summary")[-1])


@trackio
def test_trackio_has_every_number_in_one_run(tmp_path, capsys):
    in_two_parts(tiny_recipe("train.trackers=[trackio]"), tmp_path / "run")
    assert capsys.readouterr().out == ""
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("mixerzoo")
    assert run.name.startswith("first/residual ")
    assert run.config["mixer"]["name"] == "depth_attention"
    told: dict[str, dict[int, float]] = {}
    for line in SQLiteStorage.get_logs("mixerzoo", run.name):
        for key, value in line.items():
            if "/" in key:
                told.setdefault(key, {})[line["train/global_step"]] = value
    for name, numbers in expected(tmp_path / "run").items():
        assert told[name] == pytest.approx(numbers), name


def test_nothing_is_tracked_that_is_not_named(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "TRACKIO_SPACE_ID", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "here")
    for name in ("MLFLOW_TRACKING_URI", "KUBEFLOW_TRAINER_SERVER_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    callbacks = []
    init = transformers.Trainer.__init__

    def watched(self, *arguments, **options):
        init(self, *arguments, **options)
        callbacks.extend(type(each).__name__ for each in self.callback_handler.callbacks)

    monkeypatch.setattr(transformers.Trainer, "__init__", watched)
    notices = []
    reporter = Reporter()
    reporter.notice = notices.append
    train(tiny_recipe("train.steps=2"), tmp_path / "run", reporter=reporter)
    assert [name for name in callbacks if name not in ("DefaultFlowCallback", "PrinterCallback")] == []
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert any("KUBEFLOW_TRAINER_SERVER_URL" in text for text in notices)


def test_an_unknown_one_is_an_error_with_the_nearest_name(tmp_path):
    with pytest.raises(RecipeError, match=r"train\.trackers\.0: 'tensorbord' is none of .*did you mean 'tensorboard'"):
        tiny_recipe("train.trackers=[tensorbord]")
    with pytest.raises(RecipeError, match="is there twice"):
        tiny_recipe("train.trackers=[wandb, wandb]")


def test_one_that_is_not_installed_is_an_error_before_any_data_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_installed", lambda name: False)
    recipe = tiny_recipe("train.trackers=[wandb, mlflow]", "data.source={name: text, paths: [nowhere]}")
    with pytest.raises(RecipeError, match=r'wandb, mlflow; pip install "mixerzoo\[wandb,mlflow\]"'):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@tensorboard
def test_trackers_may_change_when_a_run_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe(), tmp_path / "run", reporter=Stop())
    train(tiny_recipe("train.trackers=[tensorboard]"), tmp_path / "run", resume=True)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert RunDirectory(tmp_path / "run").recipe().train.trackers == ("tensorboard",)


@tensorboard
def test_one_that_does_not_start_is_an_error_in_words_and_the_run_can_go_on(tmp_path, monkeypatch):
    def fails(folder, step):
        raise ValueError("no key")

    recipe = tiny_recipe("train.trackers=[tensorboard]", "train.steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(trackers.Trackers, "_tensorboard", staticmethod(fails))
        with pytest.raises(RunError, match="the tracker tensorboard does not start: no key"):
            train(recipe, tmp_path / "run")
    assert json.dumps(train(recipe, tmp_path / "run", resume=True))
