"""What is compiled: nothing, by the layer, or whole."""

from collections import Counter

import pytest

from benchmarking import invoke, small
from mixerzoo.benchmark import run_benchmark, running
from mixerzoo.benchmark.models import OurModel
from mixerzoo.errors import BenchmarkError
from mixerzoo.model.decoder import Backbone


def test_several_forms_are_timed_in_the_same_rounds(monkeypatch):
    asked = []
    monkeypatch.setattr(OurModel, "_compiled", lambda self, function, graph=False: asked.append(self.form) or function)
    monkeypatch.setattr(Backbone, "compile_training", lambda self, mode: asked.append(mode))
    forms = ["off", "layers", "whole"]
    found = run_benchmark(small("residual, yoco", phases=["train"], compile=forms))
    assert found["compile"] == forms
    labels = [model["label"] for model in found["models"]]
    assert labels[0] == found["baseline"] == "residual"
    assert sorted(labels) == [
        f"{mixer}{form}" for mixer in ("residual", "yoco") for form in ("", ", layers", ", whole")
    ]
    for model in found["models"]:
        assert not model["failures"]
        assert model["compile"] == (model["label"].partition(", ")[2] or "off")
        assert model["mixer"] == {"name": model["label"].partition(", ")[0]}
    # By the layer it is asked for by both.
    assert Counter(asked) == {"off": 2, "layers": 4, "whole": 2}


def test_a_peer_has_the_forms_that_it_can_have():
    plan = small(peers=["transformers"], phases=["train"], compile=["layers"])
    names = {name: model.form for name, model in running._models(plan, plan.training_dtype, {}).items()}
    assert names["residual"] == "layers"
    assert names["transformers Qwen3, off"] == "off"
    plan = small(peers=["transformers"], compile=["whole", "off"])
    names = {name: model.form for name, model in running._models(plan, plan.training_dtype, {}).items()}
    assert (names["transformers Qwen3"], names["transformers Qwen3, off"]) == ("whole", "off")
    assert (names["yoco"], names["yoco, off"]) == ("whole", "off")


def test_labels_that_would_be_those_of_another_form_are_refused():
    with pytest.raises(BenchmarkError, match="two models would be called 'yoco, layers'"):
        small('yoco, "yoco, layers": lime', phases=["train"], compile=["off", "layers"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("layer", "there is no form of compile 'layer' (did you mean 'layers'?)"),
        (",", "compile has no form; choose of off, layers, whole"),
        ("layers", "layers are compiled in training alone; time the phase train alone"),
    ],
)
def test_forms_that_cannot_be_are_refused(given, words):
    result = invoke("--compile", given)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_step_that_is_compiled_by_the_layer_is_measured():
    found = run_benchmark(small("depth_attention", phases=["train"], compile=["off", "layers"]))
    assert not [model["failures"] for model in found["models"] if model["failures"]]
    first = {model["label"]: model["phases"]["train"]["first_call_seconds"] for model in found["models"]}
    assert first["residual, layers"] > first["residual"]
    assert first["depth_attention, layers"] > first["depth_attention"]


@pytest.mark.slow
def test_compiled_decoders_and_the_compiled_peer_are_measured():
    found = run_benchmark(small("depth_attention", peers=["transformers"], compile=["whole"]))
    for model in found["models"]:
        assert not model["failures"]
        assert list(model["phases"]) == ["train", "train_with_optimizer", "prefill", "decode"]
