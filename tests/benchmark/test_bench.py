"""Benchmarks: the decoders share their weights, what is counted is what there is, and one failure stops no other."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import mixerzoo
from benchmarking import MIXERS, SMALL, invoke, small
from mixerzoo.benchmark import read_benchmark, run_benchmark, running
from mixerzoo.benchmark.clock import ratio
from mixerzoo.benchmark.memory import Peak, measured_peak
from mixerzoo.benchmark.models import OurModel, StockModel, build_decoders, compare_logits
from mixerzoo.errors import BackendError, BenchmarkError, CheckpointError, RecipeError
from mixerzoo.exchange import stock_format
from mixerzoo.model import flops_per_token, forward_flops

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_the_peak_of_a_cpu_is_that_of_its_tensors(capfd):
    before = torch.ones(1000)
    with measured_peak(CPU) as peak:
        a = before + before
        a = a * a  # two at once
        del a
        b = before + before
    assert peak.bytes == 2 * 4 * 1000 == 2 * b.nbytes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mixer", ["residual", "depth_attention", "yoco", "cla"])
@pytest.mark.parametrize("window", [[], ["model.sliding_window=3"]], ids=["full", "window"])
def test_flops_of_tokens_add_up(mixer, window):
    decoder = mixerzoo.build(
        mixerzoo.load_recipe("quickstart", [*SMALL, f"mixer={{name: {mixer}}}", *window]), device="meta"
    )
    whole = forward_flops(decoder, 8)
    assert whole == pytest.approx(8 * flops_per_token(decoder, 8), abs=8)
    assert whole == sum(forward_flops(decoder, 1, past=past) for past in range(8))
    assert whole == forward_flops(decoder, 5) + forward_flops(decoder, 3, past=5)
    # Seven rows of the head, and of the steps after the last that stores.
    head = 2 * decoder.lm_head.weight.numel()
    narrow = range(decoder.plan.last_owner + 1, len(decoder.plan.order))
    assert (whole - forward_flops(decoder, 8, last_only=True) == 7 * head) is (len(narrow) == 0)
    assert forward_flops(decoder, 1, past=7, last_only=True) == forward_flops(decoder, 1, past=7)


def test_decoders_share_their_weights_and_compute_what_they_do_alone():
    benchmark = small()
    decoders = build_decoders(benchmark, torch.float64)
    assert list(decoders) == ["residual", "depth_attention", "denseformer dilation=2", "yoco"]
    base = dict(decoders["residual"].named_parameters())
    tokens = torch.arange(24).view(2, 12)
    for label, decoder in decoders.items():
        for name, parameter in decoder.named_parameters():
            assert name.startswith("model.mixer.") or parameter is base[name]
        alone = mixerzoo.build(benchmark.recipes[label], dtype=torch.float64)
        assert torch.equal(decoder(tokens), alone(tokens)), label


@pytest.mark.parametrize(
    ("overrides", "name"),
    [([], "transformers Qwen3"), (["model.qk_norm=false", "model.tie_embeddings=true"], "transformers Llama")],
    ids=["qwen3", "llama"],
)
def test_the_peer_is_the_same_model_on_the_same_weights(overrides, name):
    decoder = build_decoders(small("residual", *overrides), torch.float64)["residual"]
    random = torch.get_rng_state()
    peer = StockModel(decoder, "off")
    assert torch.equal(torch.get_rng_state(), random)
    assert peer.name == name
    assert {id(each) for each in peer.module.parameters()} == {id(each) for each in decoder.parameters()}
    assert compare_logits(decoder, peer) < 1e-6  # its norms are in float32, whatever the dtype
    tokens, targets = torch.arange(24).view(2, 12), torch.arange(1, 25).view(2, 12)
    torch.testing.assert_close(
        peer.loss(tokens, targets).double(),
        OurModel(decoder, "off").loss(tokens, targets).double(),
        rtol=1e-6,
        atol=0,
    )


def test_another_model_is_refused_before_anything_is_timed(monkeypatch):
    stock = mixerzoo.benchmark.models.stock_model

    def altered(decoder):
        model = stock(decoder)
        model.model.layers[1].input_layernorm.variance_epsilon = 0.1
        return model

    monkeypatch.setattr(mixerzoo.benchmark.models, "stock_model", altered)
    with pytest.raises(BenchmarkError, match="logits of transformers Qwen3 differ from ours"):
        run_benchmark(small("residual", peers=["transformers"]))


def test_a_decoder_that_transformers_has_not_is_refused_with_the_fewest_reasons():
    decoder = mixerzoo.build(
        mixerzoo.load_recipe("quickstart", [*SMALL, "mixer={name: residual}", "model.k_norm=post_rope"])
    )
    with pytest.raises(CheckpointError, match=r"no model of this kind: its keys are normed after RoPE$"):
        stock_format(decoder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_everything_is_measured(dtype):
    found = run_benchmark(small(peers=["transformers"], dtype=dtype))
    json.dumps(found, allow_nan=False)
    labels = ["residual", "transformers Qwen3", "depth_attention", "denseformer dilation=2", "yoco"]
    assert [model["label"] for model in found["models"]] == labels
    base = found["models"][0]
    for model in found["models"]:
        assert not model["failures"]
        assert list(model["phases"]) == ["train", "train_with_optimizer", "prefill", "decode"]
        for name, phase in model["phases"].items():
            assert len(phase["rounds"]) == 2
            assert phase["seconds"] > 0
            assert phase["first_call_seconds"] > 0
            assert phase["peak_bytes"] > 0
            low, high = phase["ratio_quartiles"]
            assert low <= phase["ratio"] <= high
            times = zip(phase["rounds"], base["phases"][name]["rounds"], strict=True)
            assert phase["ratio"] == pytest.approx(sum(a / b for a, b in times) / 2)
    assert {phase["ratio"] for phase in base["phases"].values()} == {1.0}
    assert found["models"][1]["logits_difference"] < (1e-5 if dtype == "float32" else 5e-2)
    assert found["models"][1]["parameters"] == base["parameters"]
    kept = {model["label"]: model["kept_bytes"] for model in found["models"]}
    # Theirs keeps the logits.
    assert kept["residual"] < min(kept["transformers Qwen3"], kept["denseformer dilation=2"])


def test_the_page_names_every_key():
    page = (ROOT / "docs" / "performance.md").read_text()
    found = run_benchmark(small("residual"))
    model = found["models"][0]
    for keys in (found, found["device"], found["ceilings"], model, model["phases"], model["phases"]["train"]):
        for key in keys:
            assert f"`{key}`" in page, key


def test_what_fails_is_reported_and_the_others_go_on(monkeypatch):
    def writer(self):
        def fail(token, past):
            raise RuntimeError("no graph\nof this")

        return fail if self.decoder.mixer.name == "yoco" else self.decoder

    monkeypatch.setattr(OurModel, "writer", writer)
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke("--mixers", MIXERS)
    assert result.exit_code == 1
    assert "yoco: decode: RuntimeError: no graph\n" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines() if not line.startswith(("bench: ", "At best")))
    found = json.loads(invoke("--mixers", MIXERS, "--json").stdout)
    yoco = found["models"][-1]
    assert yoco["failures"] == {"decode": "RuntimeError: no graph"}
    assert list(yoco["phases"]) == ["train", "train_with_optimizer", "prefill"]
    assert "decode" in found["models"][-2]["phases"]


@pytest.mark.parametrize("label", ["residual", "yoco"])
def test_without_memory_to_count_what_is_kept_that_alone_is_missing(label, monkeypatch):
    loss = OurModel.loss

    def short_of_memory(self, tokens, targets):
        if self.decoder.mixer.name == label:
            raise torch.OutOfMemoryError("none left")
        return loss(self, tokens, targets)

    monkeypatch.setattr(OurModel, "loss", short_of_memory)
    result = invoke("--mixers", "yoco", "--phases", "train")
    assert result.exit_code == 1, result.output
    assert f"{label}: kept: OutOfMemoryError: none left" in result.stdout
    found = json.loads(invoke("--mixers", "yoco", "--phases", "train", "--json").stdout)
    for model in found["models"]:
        failed = model["label"] == label
        assert (model["kept_bytes"] is None) == (model["phases"]["train"]["floor_seconds"] is None) == failed
        assert list(model["phases"]) == ["train", "train_with_optimizer"]


def test_a_model_without_memory_for_its_cache_fails_alone(monkeypatch):
    new_past = OurModel.new_past

    def short_of_memory(self, batch, length):
        if self.decoder.mixer.name == "yoco":
            raise torch.OutOfMemoryError("none left")
        return new_past(self, batch, length)

    monkeypatch.setattr(OurModel, "new_past", short_of_memory)
    # What is compiled has one cache for all rounds; here it runs eagerly.
    monkeypatch.setattr(OurModel, "_compiled", lambda self, function, graph=False: function)
    models = run_benchmark(small("yoco", phases=["decode"], compile=["whole"]))["models"]
    assert [list(model["phases"]) for model in models] == [["decode"], []]
    assert [model["failures"] for model in models] == [{}, {"prefill": "OutOfMemoryError: none left"}]


@pytest.mark.parametrize(
    ("kind", "words"),
    [(torch.OutOfMemoryError, "none left"), (RuntimeError, "DefaultCPUAllocator: can't allocate memory")],
)
def test_figures_of_training_stay_where_a_second_set_of_weights_does_not_fit(kind, words, monkeypatch):
    building = running.build_decoders
    calls = iter([building])

    def once(benchmark, dtype):
        build = next(calls, None)
        if build is None:
            raise kind(words)
        return build(benchmark, dtype)

    monkeypatch.setattr(running, "build_decoders", once)
    models = run_benchmark(small("yoco"))["models"]
    assert [list(model["phases"]) for model in models] == [["train", "train_with_optimizer"]] * 2
    assert all(
        model["failures"] == dict.fromkeys(("prefill", "decode"), f"{kind.__name__}: {words}") for model in models
    )
    for phase in ("prefill", "train"):
        result = invoke("--mixers", "yoco", "--phases", phase)
        assert result.exit_code == 2
        assert f"the decoders do not fit: {kind.__name__}: {words}" in result.stderr


def test_a_prompt_that_fails_is_told_where_writing_alone_is_timed(monkeypatch):
    read = OurModel.reader
    monkeypatch.setattr(
        OurModel, "reader", lambda self: (lambda *_: 1 / 0) if self.decoder.mixer.name == "yoco" else read(self)
    )
    result = invoke("--mixers", "yoco", "--phases", "decode")
    assert result.exit_code == 1
    assert "yoco: prefill: ZeroDivisionError: division by zero" in result.stdout


def test_figures_stay_where_the_decoders_leave_no_room_to_measure_the_device_again(monkeypatch):
    measuring = running.measure_ceilings
    calls = iter([measuring])

    def once(device, dtype):
        measure = next(calls, None)
        if measure is None:
            raise torch.OutOfMemoryError("none left")
        return measure(device, dtype)

    monkeypatch.setattr(running, "measure_ceilings", once)
    result = run_benchmark(small("yoco", phases=["prefill"]))
    assert all(model["phases"]["prefill"]["floor_share"] > 0 for model in result["models"])


@pytest.mark.parametrize(("form", "parts"), [("off", ["prefill", "decode"]), ("whole", ["prefill"])])
def test_what_a_cuda_graph_took_is_not_known(form, parts, monkeypatch):
    monkeypatch.setattr(running, "seconds", lambda call, device: call() or 0.0)
    monkeypatch.setattr(running, "measured_peak", lambda device: nullcontext(Peak()))
    measured = running.Measured("residual", form, "residual", 0)
    job = running.Job(dict.fromkeys(("prefill", "decode"), lambda: None), lambda: None, lambda: None)
    running._first(measured, job, torch.device("cuda"))
    assert list(measured.peak) == parts


def test_without_the_baseline_there_is_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(OurModel, "reader", lambda self: lambda tokens, past: 1 / 0)
    result = invoke("--mixers", "yoco", "--phases", "prefill")
    assert result.exit_code == 2
    assert "residual: prefill: ZeroDivisionError: division by zero" in result.stderr


def test_where_training_does_not_fit_the_error_says_how_to_time_the_others(monkeypatch):
    def full(self, tokens, targets):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(OurModel, "loss", full)
    monkeypatch.setattr(OurModel, "compiled_loss", lambda self: self.loss)
    alone = invoke("--mixers", "yoco", "--phases", "train")
    assert alone.exit_code == 2
    assert "--phases" not in alone.stderr
    result = invoke("--mixers", "yoco")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "residual: train: OutOfMemoryError: none left; --phases prefill,decode times what else" in said


def test_a_vocabulary_that_is_the_tokenizers_is_written_out():
    found = read_benchmark("quickstart", mixers="denseformer")
    assert {recipe.model.vocab_size for recipe in found.recipes.values()} == {2048}


def test_phases_can_be_chosen_and_figures_go_to_a_file(tmp_path):
    out = tmp_path / "bench.json"
    assert invoke("--phases", "decode", "--mixers", "residual", "--out", str(out)).exit_code == 0
    assert list(json.loads(out.read_text())["models"][0]["phases"]) == ["decode"]
    assert "exists; name another file" in invoke("--out", str(out)).stderr


def test_mixers_are_those_of_the_command_the_comparison_or_the_recipe():
    again = small("depth_attention, again: residual, residual")
    assert list(again.recipes) == ["residual", "depth_attention", "again"]
    assert again.recipes["again"] == again.baseline
    assert {"residual", "mhc", "attn_res"} < set(read_benchmark("bench").recipes)
    quickstart = read_benchmark("quickstart")
    assert {label: recipe.mixer.name for label, recipe in quickstart.recipes.items()} == {
        "residual": "residual",
        "depth_attention": "depth_attention",
    }
    assert quickstart.choices["depth_attention"] == {"name": "depth_attention"}
    (_, strided) = read_benchmark("quickstart", ["mixer.stride=2"]).recipes.values()
    assert strided.mixer.options.stride == 2
    tuned = read_benchmark("bench", ["compare.tune={train.learning_rate: [1.0e-3, 3.0e-3]}"])
    assert tuned.recipes.keys() == read_benchmark("bench").recipes.keys()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"phases": ["decoding"]}, BenchmarkError, "no phase 'decoding' (did you mean 'decode'?)"),
        ({"phases": []}, BenchmarkError, "nothing is to be timed"),
        ({"peers": ["transformer"]}, BenchmarkError, "no peer 'transformer' (did you mean 'transformers'?)"),
        ({"rounds": 0}, BenchmarkError, "must be at least 1"),
        ({"dtype": "int8"}, BackendError, "int8"),
        ({"device": "cuda:77"}, BackendError, "cuda:77"),
        ({"mixers": "depth_atention"}, RecipeError, "did you mean 'depth_attention'?"),
        ({"mixers": "residual: yoco"}, BenchmarkError, "give that mixer another label"),
        ({"overrides": ["model.attention_backend=flex"]}, BackendError, "no backward on a CPU"),
        ({"overrides": ["model.num_heads=3"]}, RecipeError, "not divisible"),
        ({"overrides": ["compare.vary={seed: [1, 2]}"]}, RecipeError, "seeds are listed"),
        ({"overrides": ["compare.vary={model.rope_theta: [2e4, 4e4]}"]}, BenchmarkError, "add compare.vary={}"),
        ({"overrides": ["compare.tune={model.rope_theta: [2e4, 4e4]}"]}, BenchmarkError, "add compare.tune={}"),
        (
            {"overrides": ["compare.tune={train.activation_checkpointing: [none, layers]}"]},
            BenchmarkError,
            "add compare.tune={}",
        ),
        (
            {"overrides": ["compare.tune={mixer.stride: [2, 4]}"], "mixers": "depth_attention"},
            BenchmarkError,
            "add compare.tune={}",
        ),
        ({"overrides": ["mixer.stride=2"], "mixers": "depth_attention"}, RecipeError, "the mixers are those of"),
        (
            {"overrides": ["model.attention_bias=qkv"], "peers": ["transformers"]},
            CheckpointError,
            "no model of this kind",
        ),
    ],
)
def test_what_cannot_be_timed_is_refused_in_words(arguments, error, words):
    given = {"mixers": None, **arguments}
    with pytest.raises(error, match=re.escape(words)):
        read_benchmark("bench", [*SMALL, *given.pop("overrides", ())], **given)


def test_the_recipe_at_hand_is_large_enough_to_be_about_the_layers():
    recipe = read_benchmark("bench").baseline
    decoder = mixerzoo.build(recipe, device="meta")
    assert sum(decoder.num_parameters()) > 60e6
    embedding = decoder.lm_head.weight.numel()
    assert 2 * embedding < 0.2 * sum(decoder.num_parameters())
    assert recipe.train.batch_size * recipe.data.sequence_length == 2 * 1024


def test_ratios_are_taken_within_a_round():
    assert ratio([2.0, 40.0, 3.0], [1.0, 10.0, 1.0]) == (3.0, (2.5, 3.5))
    assert ratio([3.0], [2.0]) == (1.5, (1.5, 1.5))
