"""A recipe that starts from a checkpoint: what it takes over, what must agree, and that such runs are repeatable."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mixerzoo import TextFormat, TextTokenizer, import_checkpoint, load_checkpoint, save_checkpoint
from mixerzoo.errors import CheckpointError, DataError, RecipeError, RunError
from mixerzoo.evaluation import evaluate_run
from mixerzoo.inference.scoring import score
from mixerzoo.mixer import MixerChoice
from mixerzoo.recipe.building import build
from mixerzoo.recipe.read import load_recipe, parse_recipe
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.schema import json_schema
from mixerzoo.recipe.yaml_source import YamlSource
from mixerzoo.runs import home_of
from mixerzoo.runs.checkpoints import complete_checkpoints
from mixerzoo.training.run import Reporter, train
from runs import fingerprint
from stock import stock_model

SIZES = {"vocab_size": 257, "hidden_size": 32, "num_key_value_heads": 2}
REST = """
mixer: {{name: {mixer}}}
data:
  source: {{name: stdlib, max_bytes: 60000}}
  sequence_length: 16
train:
  steps: {steps}
  batch_size: 2
  learning_rate: {rate}
  log_interval: 1
  checkpoint_interval: 2
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An imported model of bytes, with biases and scaled RoPE."""
    place = tmp_path_factory.mktemp("start")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    stock_model("llama", **SIZES, attention_bias=True, rope_parameters=rope).save_pretrained(place / "stock")
    TextTokenizer.for_bytes().save(place / "stock")
    import_checkpoint(place / "stock", place / "start")
    return place / "start"


def recipe(
    start: Path, *overrides: str, mixer: str = "residual", model: str = "", steps: int = 4, rate: float = 1e-3
) -> Recipe:
    text = f"model:\n  init_from: {start}\n{model}" + REST.format(mixer=mixer, steps=steps, rate=rate)
    return parse_recipe(YamlSource(text, "recipe.yaml", overrides))


def refusal(*arguments: Any, **named: Any) -> str:
    with pytest.raises(RecipeError) as failure:
        recipe(*arguments, **named)
    return str(failure.value)


def test_what_the_recipe_leaves_out_is_the_checkpoints(start: Path) -> None:
    found = recipe(start, model="  rope_theta: 700.0\n  loop: {count: 2}\n  attention_backend: eager\n")
    theirs = load_checkpoint(start).config
    changed = {"rope_theta": 700.0, "loop": found.model.loop, "attention_backend": "eager"}
    assert found.model.decoder_config() == theirs.model_copy(update=changed)
    assert (found.model.hidden_size, found.model.attention_bias, found.model.loop.count) == (32, "qkvo", 2)
    assert found.data.tokenizer.model_dump() == {"name": "pretrained", "path": str(start), "end_of_text": None}
    assert parse_recipe(YamlSource(found.to_yaml(), "resolved")) == found
    assert recipe(start.parent / "stock").model.decoder_config() == recipe(start).model.decoder_config()


@torch.no_grad()
def test_the_weights_are_the_checkpoints(start: Path) -> None:
    tokens = torch.arange(20)[None]
    expected = load_checkpoint(start)(tokens)
    assert torch.equal(build(recipe(start))(tokens), expected)
    assert torch.equal(build(recipe(start, mixer="denseformer"))(tokens), expected)
    double = build(recipe(start), dtype="float64")(tokens)
    assert torch.equal(double, load_checkpoint(start, dtype="float64")(tokens))
    assert build(recipe(start), device="meta").lm_head.weight.device.type == "meta"
    assert not torch.equal(build(recipe(start, model="  rope_theta: 30.0\n"))(tokens), expected)


def test_a_mixer_goes_on_or_starts_anew(start: Path, tmp_path: Path) -> None:
    decoder = build(recipe(start, mixer="denseformer"))
    with torch.no_grad():
        for parameter in decoder.mixer.parameters():
            parameter.fill_(0.5)
    save_checkpoint(decoder, tmp_path)
    again = build(recipe(tmp_path, mixer="denseformer"))
    assert all(torch.all(parameter == 0.5) for parameter in again.mixer.parameters())
    for changed in ("{name: denseformer, period: 2}", "{name: laurel}"):
        fresh = recipe(tmp_path, f"mixer={changed}")
        ours, theirs = build(fresh), build(fresh.from_scratch())
        assert all(map(torch.equal, ours.mixer.parameters(), theirs.mixer.parameters()))
    seeds = [build(recipe(start, f"seed={seed}", mixer="mudd")).mixer.parameters() for seed in (0, 1)]
    assert not all(map(torch.equal, *seeds))


def test_sizes_that_differ(start: Path) -> None:
    message = refusal(start, model="  hidden_size: 48\n  num_kv_heads: 4\n  tie_embeddings: true\n")
    assert message.splitlines() == [
        f"recipe.yaml:3: model.hidden_size: is 48, but {start} has 32; leave it out, or set that",
        f"recipe.yaml:4: model.num_kv_heads: is 4, but {start} has 2; leave it out, or set that",
        f"recipe.yaml:5: model.tie_embeddings: is true, but {start} has false; leave it out, or set that",
    ]
    assert f"override 'model.vocab_size=300': model.vocab_size: is 300, but {start}" in refusal(
        start, "model.vocab_size=300"
    )
    # A resolved recipe is not compared when it is read, for the checkpoint may be gone; but before it is used.
    resolved = recipe(start).to_yaml().replace("hidden_size: 32", "hidden_size: 64")
    with pytest.raises(RecipeError, match=rf"model.hidden_size: is 64, but {start} has 32"):
        build(parse_recipe(YamlSource(resolved, "resolved")))


def test_tokenizers_that_differ(start: Path, tmp_path: Path) -> None:
    assert (
        "override 'data.tokenizer={name: bytes}': data.tokenizer: weights of model.init_from know their own"
        in refusal(start, "data.tokenizer={name: bytes}")
    )
    shutil.copytree(start, tmp_path / "other")
    text = json.loads((start / "tokenizer.json").read_text())
    text["added_tokens"] = [{**text["added_tokens"][0], "special": False}]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(text))
    mine = recipe(start, f"data.tokenizer={{name: pretrained, path: {tmp_path / 'other'}}}")
    with pytest.raises(RecipeError, match=r"data.tokenizer is not the tokenizer of"):
        train(mine, tmp_path / "run")
    (tmp_path / "other" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer at"):
        train(recipe(tmp_path / "other", f"data.tokenizer={{name: pretrained, path: {start}}}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_missing_or_damaged(start: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"recipe.yaml:2: model.init_from: {tmp_path / 'gone'}: no such directory"
    shutil.copytree(start, tmp_path / "start")
    found = recipe(tmp_path / "start")
    (tmp_path / "start" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"it has no model.safetensors"):
        train(found, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "model.init_from: expected text, got 3" in refusal(start, "model.init_from=3", model="  hidden_size: 8\n")


def test_without_it_everything_is_required_as_before() -> None:
    with pytest.raises(RecipeError, match="the key 'model' is required"):
        parse_recipe(YamlSource(REST.format(mixer="residual", steps=1, rate=1e-3), "recipe.yaml"))
    alone = json_schema()["then"]  # without a base
    assert "hidden_size" in alone["properties"]["model"]["then"]["required"]
    assert alone["then"]["properties"]["data"]["required"] == ["tokenizer"]


def test_training_starts_where_the_checkpoint_is(start: Path, tmp_path: Path) -> None:
    tiny = recipe(start, mixer="denseformer", steps=1, rate=1e-12)
    result = train(tiny, tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run")
    assert trained.mixer.name == "denseformer"
    from mixerzoo.data import prepare

    data = prepare(tiny.data)
    expected = score(
        load_checkpoint(start),
        data.validation.tokens,
        sequence_length=16,
        start_token=data.tokenizer.end_of_text_id,
        num_bytes=data.validation.num_bytes,
        batch_size=16,
    )
    assert result["bits_per_byte"] == pytest.approx(expected.to_dict()["bits_per_byte"], rel=1e-6)
    assert f"from the weights of `{start}`" in (tmp_path / "run" / "README.md").read_text()


def test_runs_are_repeatable_and_can_be_resumed_without_the_checkpoint(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "start")
    mine = recipe(tmp_path / "start", mixer="depth_attention")
    train(mine, tmp_path / "once")
    run = tmp_path / "twice"

    class Dies(Reporter):
        def step(self, step: int, loss: float | None, tokens_per_second: float) -> None:
            if step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(mine, run, reporter=Dies())
    record = json.loads((tmp_path / "once" / "run.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", record["initial_weights"])
    assert [step for step, _ in complete_checkpoints(run / "checkpoints")] == [2]
    (tmp_path / "start" / "model.safetensors").unlink()
    train(mine, run, resume=True)
    assert fingerprint(tmp_path / "once") == fingerprint(run)
    assert evaluate_run(run)["bits_per_byte"] == record_of(run)["bits_per_byte"]


def test_all_chat_templates_of_the_checkpoint_come_along_and_go_with_overwrite(start: Path, tmp_path: Path) -> None:
    source = shutil.copytree(start, tmp_path / "start")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    train(recipe(source, steps=2), tmp_path / "run")
    carried = tmp_path / "run" / "additional_chat_templates" / "tool_use.jinja"
    assert carried.read_text() == "{{ messages }}"
    train(recipe(start, steps=2), tmp_path / "run", overwrite=True)
    assert not carried.exists()


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_run_does_not_begin_anew_from_other_weights(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "start")
    mine = recipe(tmp_path / "start")
    train(mine, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(mine, tmp_path / "run", resume=True)
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    save_checkpoint(build(recipe(start, mixer="denseformer").from_scratch()), tmp_path / "start")
    with pytest.raises(RunError, match=r"the weights of model\.init_from changed since the run was started"):
        train(mine, tmp_path / "run", resume=True)


def test_the_recipe_of_the_documentation(start: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    (text,) = re.findall(r"^```yml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_recipe(tmp_path / "recipe.yaml", [f"model.init_from={start}"]).model.hidden_size == 32


def test_what_training_starts_from_is_said(start: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listener(Reporter):
        def notice(self, text: str) -> None:
            said.append(text)

    for mixer in ("residual", "denseformer"):
        train(recipe(start, mixer=mixer, steps=1), tmp_path / mixer, reporter=Listener())
    begins = f"Starting from the weights of {start}"
    changed = "with denseformer in place of residual: the mixer has its initial values"
    assert [text for text in said if text.startswith("Start")] == [f"{begins}.", f"{begins}, {changed}."]


def test_a_run_keeps_how_the_texts_of_its_checkpoint_begin_and_end(start: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(start, source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template, "bos_token": "a"}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 33], "temperature": 0.5}))
    run = tmp_path / "run"
    train(recipe(source, steps=2), run)
    shutil.rmtree(source)
    for here in (run, run / "checkpoints" / "checkpoint-2"):
        form = TextFormat.load(home_of(here))
        assert form.end_ids == {2, 33, 256}  # config.json's, and the two above
        assert form.encode_chat([{"role": "user", "content": "hi"}]) == list(b"hi!")
    generation = json.loads((run / "generation_config.json").read_text())
    assert (generation["temperature"], generation["eos_token_id"]) == (0.5, [2, 33, 256])
    assert json.loads((run / "tokenizer_config.json").read_text())["bos_token"] == "a"


def test_the_end_that_a_recipe_names_goes_before_that_of_its_checkpoint(start: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(start, source)
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": "a"}))
    named = {"name": "pretrained", "path": str(source), "end_of_text": "<|endoftext|>"}
    asked = recipe(source, steps=1).model_dump(mode="json")
    train({**asked, "data": {**asked["data"], "tokenizer": named}}, run)
    assert TextTokenizer.load(source).end_of_text == "a"
    assert TextTokenizer.load(run).end_of_text == "<|endoftext|>"


def test_what_a_run_kept_goes_with_the_run(start: Path, tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(start, source)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    train(recipe(source, steps=2), run)
    assert TextFormat.load(run).chat_template is not None
    (source / "chat_template.jinja").unlink()
    train(recipe(source, steps=2), run, overwrite=True)
    assert TextFormat.load(run).chat_template is None


def test_the_source_s_mixer_need_not_go_with_the_backend(start: Path, tmp_path: Path) -> None:
    import_checkpoint(start, tmp_path / "moda", mixer=MixerChoice.model_validate({"name": "moda"}))
    assert build(recipe(tmp_path / "moda", "model.attention_backend=flex")).config.attention_backend == "flex"
