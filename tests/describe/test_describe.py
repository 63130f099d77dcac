"""Costs against formulas written from the paper, and pictures against their exact text."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixerzoo import Decoder, Mixer, ModelConfig, Plan, Recipe, Site, build, load_registry
from mixerzoo.data import prepare
from mixerzoo.describe.description import count_costs, describe, flops_per_token
from mixerzoo.describe.picture import MAX_ROWS, picture
from mixerzoo.errors import MixerError, RecipeError
from mixerzoo.model.layer import Layer
from mixerzoo.recipe.feasibility import TrainingMemory, check_data, check_size, free_bytes
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.yaml_source import YamlSource
from runs import tiny_recipe

#: hidden, MLP, layers, query heads, key/value heads, stride, parameters as the paper writes them.
PAPER_SIZES = {
    "360M": (960, 2540, 24, 15, 15, 12, "361M"),
    "500M": (1152, 3072, 24, 18, 18, 12, "498M"),
    "710M": (1280, 3072, 32, 20, 20, 16, "716M"),
    "1.5B": (1536, 4096, 48, 24, 6, 24, "1.34B"),
    "3B": (2048, 6912, 48, 32, 8, 24, "2.75B"),
}
VOCAB, SEQUENCE = 50304, 2048


def make_recipe(model: dict[str, Any], mixer: dict[str, Any], **sections: Any) -> Recipe:
    data = {
        "source": {"name": "stdlib"},
        "tokenizer": {"name": "bytes"},
        "sequence_length": SEQUENCE,
        **sections.get("data", {}),
    }
    train = {"steps": 1, "batch_size": 1, "learning_rate": 0.001, **sections.get("train", {})}
    return parse_recipe(YamlSource(json.dumps({"model": model, "mixer": mixer, "data": data, "train": train}), "r"))


def paper_recipe(size: str, mixer: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    hidden, mlp, layers, heads, kv_heads, stride, _ = PAPER_SIZES[size]
    model = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": 64,
        "vocab_size": VOCAB,
    }
    return make_recipe(model, mixer or {"name": "depth_attention", "stride": stride}, **sections)


def small_model(num_layers: int = 6, **changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_layers": num_layers,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": 300,
        **changes,
    }


def small_decoder(mixer: dict[str, Any], num_layers: int = 6, **changes: Any) -> Decoder:
    return build(make_recipe(small_model(num_layers, **changes), mixer), device="meta")


def decoder_with_plan(made: Plan) -> Decoder:
    """A plain residual decoder whose steps share slots or see windows."""

    class Planned(load_registry().get("residual").mixer):  # type: ignore[misc]  # a class found at run time
        name = "planned"

        def plan(self) -> Plan:
            return made

    return Decoder(ModelConfig(**small_model(len(made.order))), Planned)


# Costs.


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameters_are_those_of_the_paper(size: str) -> None:
    hidden, mlp, layers, heads, kv_heads, _, written = PAPER_SIZES[size]
    found = describe(paper_recipe(size))
    attention = 2 * hidden * heads * 64 + 2 * hidden * kv_heads * 64 + 2 * 64
    expected = 2 * VOCAB * hidden + layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden
    assert found.costs.parameters == found.costs.decoder_parameters == expected
    assert found.costs.mixer_parameters == 0
    shown = f"{expected / 1e6:.0f}M" if expected < 1e9 else f"{expected / 1e9:.2f}B"
    assert shown == written


@pytest.mark.parametrize("size", PAPER_SIZES)
@pytest.mark.parametrize(("precision", "width"), [("float32", 4), ("bf16", 2)])
def test_bytes_follow_from_the_sizes_and_the_precision(size: str, precision: str, width: int) -> None:
    hidden, _, layers, _, kv_heads, _, _ = PAPER_SIZES[size]
    found = describe(paper_recipe(size, train={"precision": precision}))
    per_token = 2 * layers * kv_heads * 64 * width
    assert found.costs.kv_bytes_per_token == found.baseline.kv_bytes_per_token == per_token
    assert found.costs.cache_bytes == SEQUENCE * per_token
    assert found.costs.weight_bytes == width * found.costs.parameters
    # Two source layers, 0 and s, each with keys and values; the stream besides.
    assert found.costs.in_flight_bytes_per_token == width * (hidden + 2 * 2 * kv_heads * 64)
    assert found.baseline.in_flight_bytes_per_token == width * hidden


def test_depth_attention_costs_the_flops_that_the_paper_counts() -> None:
    found = describe(paper_recipe("3B"))
    extra = found.costs.flops_per_token - found.baseline.flops_per_token
    assert extra == 4 * 8 * 64 * 117
    assert f"{extra:.2e}" == "2.40e+05"
    assert 100 * extra / (2 * found.costs.parameters) == pytest.approx(0.004, abs=5e-4)
    percent = found.extra_percent()
    assert percent["flops_per_token"] == pytest.approx(100 * extra / found.baseline.flops_per_token)
    assert percent["parameters"] == 0
    assert percent["mixer_parameters"] is None


def test_flops_of_the_baseline_are_weights_and_attention() -> None:
    hidden, mlp, layers, heads, kv_heads, _, _ = PAPER_SIZES["1.5B"]
    layer = 2 * hidden * heads * 64 + 2 * hidden * kv_heads * 64 + 3 * hidden * mlp
    attention = 4 * heads * 64 * (SEQUENCE + 1) / 2
    expected = 2 * (layers * layer + VOCAB * hidden) + layers * attention
    assert describe(paper_recipe("1.5B")).baseline.flops_per_token == expected


def test_flops_look_at_each_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(3, loop={"prelude": 1, "coda": 1, "count": 40})
    decoder = build(make_recipe(model, {"name": "residual"}), device="meta")
    looked = []
    named = Layer.named_modules
    monkeypatch.setattr(Layer, "named_modules", lambda self: looked.append(self) or named(self))
    flops_per_token(decoder, SEQUENCE)
    assert len(looked) == 3


PLANS = {
    "plain": Plan.plain((0, 1, 2, 3)),
    "looped": Plan.plain((0, 1, 2, 1, 2, 3)),
    "shared keys and values": Plan.borrowing((0, 1, 2, 3), (0, 0, 2, 2), (0, 0, 2, 2), (None,) * 4),
    "shared values": Plan.borrowing((0, 1, 2, 3), (0, 1, 2, 3), (0, 0, 0, 0), (None,) * 4),
    "windows": Plan.borrowing((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (3, 5, None, 100)),
}


@pytest.mark.parametrize("name", PLANS)
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    """Projections as PyTorch counts them while they run; attention token by token."""
    length = 7
    made = PLANS[name]
    if max(made.order) + 1 < len(made.order):
        config = ModelConfig(**small_model(max(made.order) + 1, loop={"prelude": 1, "coda": 1, "count": 2}))
        assert config.order == made.order
        decoder = Decoder(config, load_registry().get("residual").mixer)
    else:
        decoder = decoder_with_plan(made)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.zeros(1, length, dtype=torch.long))
    projections = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    attended = sum(
        min(position + 1, made.window(step) or length) for step in range(len(made.order)) for position in range(length)
    )
    expected = projections / length + 4 * 4 * 8 * attended / length
    assert flops_per_token(decoder, length) == round(expected)


def test_bytes_of_shared_and_windowed_slots() -> None:
    per_slot = 2 * 8 * 4
    shared = count_costs(decoder_with_plan(PLANS["shared values"]), 50, torch.float32)
    assert shared.kv_bytes_per_token == (4 + 1) * per_slot
    windows = count_costs(decoder_with_plan(PLANS["windows"]), 50, torch.float32)
    assert windows.kv_bytes_per_token == 8 * per_slot
    assert windows.cache_bytes == 2 * (3 + 5 + 50 + 50) * per_slot


@pytest.mark.parametrize(
    "mixer",
    [{"name": "denseformer", "dilation": 2, "period": 3}, {"name": "attn_res", "block_size": 4}, {"name": "smear"}],
    ids=lambda mixer: mixer["name"],
)
def test_costs_are_those_of_the_running_decoder(mixer: dict[str, Any]) -> None:
    recipe = make_recipe(small_model(), mixer, data={"sequence_length": 9})
    found = describe(recipe)
    decoder = build(recipe)
    assert found.costs.parameters == sum(parameter.numel() for parameter in decoder.parameters())
    assert found.costs.mixer_parameters == sum(p.numel() for p in decoder.mixer.parameters()) > 0
    cache = decoder.new_cache(1)
    with torch.no_grad():
        decoder(torch.zeros(1, 9, dtype=torch.long), cache)
    assert found.costs.cache_bytes == cache.nbytes
    assert found.costs.kv_bytes_per_token == cache.bytes_per_token


def test_tied_weights_count_once() -> None:
    untied, tied = (
        describe(make_recipe(small_model(tie_embeddings=tied), {"name": "residual"})) for tied in (False, True)
    )
    assert untied.costs.parameters - tied.costs.parameters == 300 * 24
    assert untied.costs.flops_per_token == tied.costs.flops_per_token
    assert untied.costs == untied.baseline


def test_vocabulary_comes_from_the_tokenizer_where_that_is_known() -> None:
    open_size = small_model(vocab_size=None)
    assert describe(make_recipe(open_size, {"name": "residual"})).shape.vocab_size == 257
    pretrained = make_recipe(
        open_size, {"name": "residual"}, data={"tokenizer": {"name": "pretrained", "path": "gpt2"}}
    )
    with pytest.raises(RecipeError, match=r"vocabulary size is open.*model\.vocab_size=50304"):
        describe(pretrained)


def test_to_dict_is_json_with_plain_keys() -> None:
    found = describe(paper_recipe("360M")).to_dict()
    mixer = json.loads(json.dumps(found, allow_nan=False))["mixer"]
    assert mixer.items() >= {"name": "depth_attention", "stride": 12, "recent_window": 0}.items()
    costs = {
        "parameters",
        "decoder_parameters",
        "mixer_parameters",
        "weight_bytes",
        "kv_bytes_per_token",
        "cache_bytes",
        "in_flight_bytes_per_token",
        "flops_per_token",
    }
    assert set(found["residual"]) == set(found["extra_percent"]) == costs
    assert set(found) == costs | {
        "mixer", "model", "sequence_length", "dtype", "residual", "extra_percent", "training", "picture"
    }  # fmt: skip
    assert (found["dtype"], found["sequence_length"]) == ("float32", SEQUENCE)


# Pictures.

DEPTH_ATTENTION = """\
   e 0 1 2 3 4 5
1  · ● ●
2  · ● · ●
3  · ● · ● ●
4  · ● · ● · ●
5  · ● · ● · ● ●
● read   · not read
rows     attention of a layer
columns  e: the embedding, then attention of a layer"""

DENSEFORMER = """\
   e 0 1 2 3 4 5
1  ● · ●
3  ● · ● · ●
5  ● · ● · ● · ●
● read   · not read
rows     MLP of a layer
columns  e: the embedding, then MLP of a layer"""

ATTN_RES = """\
     e 0a 0m 1a 1m 2a 2m
0a   ●
0m   ●  ●
1a   ●  ●  ●
1m   ●  ●  ●  ●
2a   ●  ●  ●  ●  ●
2m   ●  ●  ●  ●  ●  ●
● read   · not read
rows     attention (a) and MLP (m) of a layer
columns  e: the embedding, then attention (a) and MLP (m) of a layer"""

LOOPED = """\
      e 0 1 2 3 4 5
1(1)  · ● ●
2(2)  · ● ● ●
3(1)  · ● ● · ●
4(2)  · ● · ● ● ●
5(3)  · ● · · ● ● ●
● read   · not read
rows     attention of a step, as step(layer)
columns  e: the embedding, then attention of a step"""

DEEP = """\
       e0         10        20        30        40
 1–24  ·●○○○○○○○○○○○○○○○○○○○○○○○○
25–47  ·●·······················●○○○○○○○○○○○○○○○○○○○○○○○
● read by all   ○ by some   · by none
rows     attention of a layer
columns  e: the embedding, then attention of a layer"""

PICTURES = {
    "depth_attention": (DEPTH_ATTENTION, {"name": "depth_attention", "stride": 2}, 6, {}),
    "denseformer": (DENSEFORMER, {"name": "denseformer", "dilation": 2, "period": 2}, 6, {}),
    "attn_res": (ATTN_RES, {"name": "attn_res"}, 3, {}),
    "looped": (
        LOOPED,
        {"name": "depth_attention", "stride": 1},
        4,
        {"loop": {"prelude": 1, "coda": 1, "count": 2}},
    ),
    "48 layers": (DEEP, {"name": "depth_attention"}, 48, {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_text(name: str) -> None:
    expected, mixer, layers, changes = PICTURES[name]
    decoder = small_decoder(mixer, layers, **changes)
    assert picture(decoder) == expected
    assert picture(decoder.mixer) == expected


def test_picture_of_a_plain_residual_stream() -> None:
    assert picture(small_decoder({"name": "residual"})) == (
        "No site combines the outputs of others with weights of its own."
    )


MIXERS = (
    {"name": "depth_attention"},
    {"name": "depth_attention", "stride": 1},
    {"name": "depth_attention", "stride": 4, "recent_window": 3},
    {"name": "denseformer"},
    {"name": "denseformer", "dilation": 4},
    {"name": "denseformer", "dilation": 4, "period": 5},
    {"name": "attn_res"},
    {"name": "attn_res", "block_size": 6},
    {"name": "attn_res", "dialect": "snapshot", "block_size": 12},
)


def sources_by_reader(mixer: Mixer) -> dict[str, set[str]]:
    """Names of readers and of what they read, as the picture writes them, straight from the mixer."""
    found = {site: mixer.sources(site) for site in mixer.shape.sites()}
    found = {site: sources for site, sources in found.items() if sources}
    both_offer = len({s.branch for sources in found.values() for s in sources if s is not None}) == 2
    both_read = len({site.branch for site in found}) == 2

    def name(site: Site | None, both: bool) -> str:
        return "e" if site is None else f"{site.step}{site.branch[0] if both else ''}"

    return {name(site, both_read): {name(s, both_offer) for s in sources} for site, sources in found.items()}


@pytest.mark.parametrize(
    ("mixer", "layers"),
    # A period beyond the depth is refused.
    [(mixer, layers) for mixer in MIXERS for layers in (1, 6, 12, 24, 40, 48) if mixer.get("period", 1) <= layers],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_every_mark_of_a_picture_is_true(mixer: dict[str, Any], layers: int) -> None:
    decoder = small_decoder(mixer, layers)
    reads = sources_by_reader(decoder.mixer)
    # Wide enough that no two columns share a character.
    drawn = picture(decoder, width=140)
    lines = drawn.splitlines()
    if not reads:
        assert len(lines) == 1
        return
    readers = list(reads)
    names = ["e", *(f"{s}{b}" for s in range(layers) for b in ("am" if "MLP (m)" in lines[-1] else [""]))]
    grid = [line for line in lines[1:-3] if "more rows" not in line]
    assert len(grid) <= MAX_ROWS
    start = lines[0].index("e")
    cell = 1 if lines[0][start + 1] != " " else lines[0].index("0") - start
    if cell > 1 and names[1] != "0":
        cell = len(names[-1]) + 1
    seen: list[str] = []
    for line in grid:
        first, _, last = line[:start].strip().partition("–")
        group = readers[readers.index(first) : readers.index(last or first) + 1]
        seen += group
        for column, name in enumerate(names):
            mark = (line[start + cell * column :] or " ")[0]
            count = sum(name in reads[reader] for reader in group)
            expected = "●" if count == len(group) else "○" if count else None
            assert mark == expected if expected else mark in "· ", (line, name)
    if len(grid) == len(lines) - 4:
        assert seen == readers
    else:
        assert any("more rows" in line for line in lines)
        assert len(grid) == MAX_ROWS


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: "-".join(map(str, mixer.values())))
def test_grid_keeps_to_its_width_and_to_one_screen(mixer: dict[str, Any], width: int) -> None:
    for layers in (6, 24, 48, 200):
        *grid, _, _ = picture(small_decoder(mixer, layers), width).splitlines()
        assert max(map(len, grid)) <= width
        assert len(grid) <= MAX_ROWS + 3
        # Rows grow: what comes later is blank.
        ends = [len(line) for line in grid[1:-1] if "more rows" not in line]
        assert all(a <= b + 1 for a, b in pairwise(ends))


# The whole run.


def test_tokens_of_the_run() -> None:
    recipe = paper_recipe("360M", train={"steps": 30, "batch_size": 4, "accumulation": 2})
    run = describe(recipe).training
    assert (run.tokens, run.tokens_per_step, run.devices) == (30 * 4 * 2 * SEQUENCE, 4 * 2 * SEQUENCE, 1)


def test_the_time_of_a_run_is_its_operations_over_what_the_gpus_reach() -> None:
    recipe = paper_recipe("360M", train={"steps": 30, "precision": "bf16"})
    found = describe(recipe, devices=8, gpu="H100", mfu=0.5)
    assert found.training.flops == 3 * found.costs.flops_per_token * found.training.tokens
    assert found.training.expected.seconds == pytest.approx(found.training.flops / (8 * 0.5 * 989.4e12))
    assert describe(recipe).training.expected is None
    with pytest.raises(RecipeError, match=r"the peak of a GPU 'H1000' is not known; known: .*H100"):
        describe(recipe, gpu="H1000")


def test_epochs_are_those_of_the_text_as_it_was_last_prepared(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("train.steps=2000", "data.source.max_bytes=50000")
    before = describe(recipe).training
    assert (before.text_tokens, before.epochs, before.notices) == (None, None, ())
    data = prepare(recipe.data)
    said = check_data(recipe, data)
    found = describe(recipe).training
    assert found.text_tokens == len(data.train.tokens)
    assert found.epochs == pytest.approx(2000 * 8 * 32 / len(data.train.tokens))
    assert list(found.notices) == said
    assert said[0].startswith("The run reads its text ")
    # Another length is the same text, another sample is not.
    assert describe(tiny_recipe("data.source.max_bytes=50000", "data.sequence_length=16")).training.text_tokens
    assert describe(tiny_recipe("data.source.max_bytes=60000")).training.text_tokens is None


def test_memory_of_training(monkeypatch) -> None:
    recipe = paper_recipe("360M", train={"batch_size": 4})
    found = describe(recipe)
    memory, parameters = found.training.memory, found.costs.parameters
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    # An eighth of the tokens at a time: their scores and log-probabilities.
    assert memory.logits == 4 * SEQUENCE // 8 * VOCAB * 8
    assert memory.activations > memory.logits
    lighter = describe(paper_recipe("360M", train={"batch_size": 4, "activation_checkpointing": True})).training.memory
    assert lighter.activations < memory.activations
    modes = [{"every": 1}, "layers", "selective", {"every": 3}, "none"]
    kept = [
        describe(paper_recipe("360M", train={"batch_size": 4, "activation_checkpointing": mode})).training.memory
        for mode in modes
    ]
    assert [each.activations for each in kept] == sorted(each.activations for each in kept)
    assert kept[0] == kept[1] == lighter
    assert kept[-1] == memory
    assert lighter.optimizer == memory.optimizer
    # What surely does not fit is refused, what may not fit is said.
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.least - 1, "this machine"))
    with pytest.raises(RecipeError, match=r"training needs at least 5\.\d+ GiB \(weights 1\.3.* GiB, gradients"):
        check_size(recipe)
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.least, "this machine"))
    assert check_size(recipe)[0].startswith("Training may need ")
    monkeypatch.setattr("mixerzoo.recipe.feasibility.free_bytes", lambda: (memory.total, "this machine"))
    assert check_size(recipe) == []


def test_memory_of_shares() -> None:
    def memory(devices: int, **fsdp: bool) -> TrainingMemory:
        recipe = paper_recipe("360M", train={"batch_size": 4, "parallel": "fsdp", "fsdp": fsdp})
        return describe(recipe, devices).training.memory

    one, eight = memory(1), memory(8)
    plain = describe(paper_recipe("360M", train={"batch_size": 4}), 8).training.memory
    assert (one.weights, plain.gathered) == (plain.weights, 0)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(eight, part) == pytest.approx(getattr(one, part) / 8, abs=2)
    assert (eight.gathered, eight.activations) == (one.gathered, plain.activations)
    assert eight.total < plain.total
    assert eight.gathered < memory(8, reshard_after_forward=False).gathered < 2 * plain.weights


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.batch_size=5000"], r"train\.batch_size is 5000, but the training text is \d+ sequences of"),
        (
            ["data.tokenizer={name: bpe, vocab_size: 60000}"],
            r"vocab_size is 60000, but the training text has \d+ bytes",
        ),
    ],
)
def test_what_does_not_go_with_the_text(overrides, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("data.source.max_bytes=50000", *overrides)
    with pytest.raises(RecipeError, match=words):
        check_data(recipe, prepare(recipe.data))


def test_a_large_vocabulary_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path))
    recipe = tiny_recipe("data.source.max_bytes=50000", "data.tokenizer={name: bpe, vocab_size: 20000}")
    (large,) = check_data(recipe, prepare(recipe.data))
    assert large.startswith("The vocabulary of ")


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch) -> None:
    limit, used = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr("mixerzoo.recipe.feasibility._CGROUPS", ((limit, used), (tmp_path / "none", used)))
    free = free_bytes()[0]
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    assert free_bytes() == (2_000_000, "this machine")
    limit.write_text("max\n")
    assert free_bytes()[0] == pytest.approx(free, rel=0.5)


def test_what_a_mixer_raises_while_it_is_built_ends_in_words(monkeypatch) -> None:
    def breaks(self: Mixer, *_: Any, **__: Any) -> None:
        raise OverflowError("int too large to convert")

    recipe = paper_recipe("360M", {"name": "residual"})
    monkeypatch.setattr(load_registry().get("residual").mixer, "__init__", breaks)
    with pytest.raises(MixerError, match=r"mixer 'residual' cannot be built .*: OverflowError: int too large"):
        describe(recipe)
