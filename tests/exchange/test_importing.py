"""Imported models compute what their source computes, or it is said by how much they depart from it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

import golden_cases
import zoo
from case import LATENT
from command_line import run
from mixerzoo import TextTokenizer, import_checkpoint, load_checkpoint, load_registry, save_checkpoint
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.mixer.choice import MixerChoice
from own import CHOICES, OWN, neutral_choices
from stock import KINDS, STOCK, TOKENS, exact, stock_model
from zoo import ZooCase, assert_close


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_imported_model_is_its_source(kind: str, sharded: bool, tmp_path: Path) -> None:
    model = stock_model(kind, tie_word_embeddings=sharded)
    model.save_pretrained(tmp_path / "stock", max_shard_size="8KB" if sharded else "1GB")
    result = run("import", tmp_path / "stock", "--out", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert "mixer residual" in result.output
    assert "It computes what the source computes (largest difference of logits: 0.0e+00)." in result.output
    decoder = load_checkpoint(tmp_path / "ours")
    assert_close(decoder(TOKENS), model(TOKENS).logits, 1e-5)
    assert_close(load_checkpoint(tmp_path / "ours", dtype="float64")(TOKENS), exact(model)(TOKENS).logits)


@pytest.mark.parametrize("name", neutral_choices(3))
@torch.no_grad()
def test_a_neutral_mixer_leaves_the_source_model(name: str, llama: Path, tmp_path: Path) -> None:
    choice, tolerance = neutral_choices(3)[name]
    report = import_checkpoint(llama, tmp_path / "ours", mixer=choice, dtype="float64")
    assert report.same_model
    decoder = load_checkpoint(tmp_path / "ours")
    assert decoder.mixer.name == name
    assert_close(decoder(TOKENS), exact(stock_model("llama"))(TOKENS).logits, tolerance)


@pytest.mark.parametrize("name", sorted(set(OWN) - set(neutral_choices(3))))
@torch.no_grad()
def test_any_other_mixer_starts_from_its_initial_values_and_says_so(name: str, llama: Path, tmp_path: Path) -> None:
    source = load_checkpoint(llama)
    choice = MixerChoice.model_validate(CHOICES[name])
    report = import_checkpoint(llama, tmp_path / "ours", mixer=choice, seed=3)
    assert (report.mixer, report.source_mixer) == (name, "residual")
    decoder = load_checkpoint(tmp_path / "ours")
    mixer = load_registry().get(name).mixer
    with torch.device("meta"):
        fresh = zoo.Decoder(source.config, mixer, choice.options)
    fresh = zoo.materialize(fresh, 3)
    for key, tensor in decoder.state_dict().items():
        expected = fresh.state_dict() if key.startswith("model.mixer.") else source.state_dict()
        assert torch.equal(tensor, expected[key]), key
    assert report.new_parameters == sum(p.numel() for p in decoder.mixer.parameters())
    assert set(report.left_out) == source.state_dict().keys() - decoder.state_dict().keys()
    theirs, ours = source(TOKENS), decoder(TOKENS)
    assert report.same_model == torch.allclose(ours, theirs, atol=1e-3)
    assert report.same_model or report.difference > 1e-4


def test_the_command_says_that_the_result_is_another_model(llama: Path, tmp_path: Path) -> None:
    result = run("import", llama, "--out", tmp_path / "ours", "--mixer", "depth_attention", "mixer.stride=1")
    assert result.exit_code == 0, result.output
    assert "It is not the source model any more: logits differ by up to" in result.output
    assert load_checkpoint(tmp_path / "ours").mixer.config.stride == 1  # type: ignore[attr-defined]
    result = run("import", llama, "--out", tmp_path / "cla", "mixer={name: cla, group: 3}", "--json")
    report = json.loads(result.stdout)
    assert report["left_out"] == [f"model.layers.{n}.self_attn.{x}_proj.weight" for n in (1, 2) for x in "kv"]
    assert report["same_model"] is False


def test_a_seed_of_nothing_is_told(llama: Path, tmp_path: Path) -> None:
    assert "--seed changes nothing here" in run("import", llama, "--out", tmp_path / "a", "--seed", "3").stderr
    mixed = run("import", llama, "--out", tmp_path / "b", "--seed", "3", "--mixer", "denseformer")
    assert (mixed.exit_code, mixed.stderr) == (0, "")


def test_what_lies_beside_the_weights_comes_along(llama: Path, tmp_path: Path) -> None:
    report = import_checkpoint(llama, tmp_path / "deep" / "ours")
    assert report.companions == ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    for name in report.companions:
        assert (tmp_path / "deep" / "ours" / name).read_bytes() == (llama / name).read_bytes()
    assert not (tmp_path / "deep" / "ours" / "additional_chat_templates").exists()
    config = json.loads((tmp_path / "deep" / "ours" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["max_position_embeddings"]) == (1, 2, 64)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ours"]


def test_all_its_chat_templates_come_along(llama: Path, tmp_path: Path) -> None:
    source = shutil.copytree(llama, tmp_path / "source")
    folder = source / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ messages }}")
    report = import_checkpoint(source, tmp_path / "ours")
    assert report.companions[-1] == "additional_chat_templates/tool_use.jinja"
    assert (tmp_path / "ours" / report.companions[-1]).read_text() == "{{ messages }}"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is a link to .*, outside of the checkpoint"):
        import_checkpoint(source, tmp_path / "again")


def test_an_imported_model_has_a_card_whose_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    save_checkpoint(zoo.make(ZooCase("residual"), dtype=torch.float32, vocab_size=257), source)
    TextTokenizer.for_bytes().save(source)
    import_checkpoint(source, tmp_path / "ours")
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert "residual" in card.data.tags
    # A path of this machine is nobody's business.
    assert str(tmp_path) not in card.content
    assert "from `source`" in card.text
    monkeypatch.chdir(tmp_path / "ours")
    for code in re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})
        assert "The" in capsys.readouterr().out


def departure(directory: Path, theirs: Tensor) -> float:
    """Largest difference of float32 logits on `TOKENS`, as a share of the largest."""
    ours = load_checkpoint(directory, dtype="float32")(TOKENS)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def test_weights_that_are_rounded_are_called_so(tmp_path: Path) -> None:
    model = stock_model("qwen3")
    model.save_pretrained(tmp_path / "stock")
    result = run("import", tmp_path / "stock", "--out", tmp_path / "half", "--dtype", "bfloat16")
    assert load_checkpoint(tmp_path / "half").lm_head.weight.dtype == torch.bfloat16
    expected = (
        "It computes what the source computes, but for weights that were rounded from float32 to bfloat16: logits"
    )
    assert expected in result.output
    (percent,) = re.findall(r"differ by up to ([\d.]+)% of the largest", result.output)
    assert float(percent) / 100 == pytest.approx(departure(tmp_path / "half", model(TOKENS).logits), rel=1)
    report = import_checkpoint(tmp_path / "stock", tmp_path / "again", dtype="bfloat16")
    assert (report.same_model, report.rounded, report.dtype) == (True, True, "bfloat16")
    assert report.difference > 1e-3
    # Bits that were there stay: no rounding, and none is spoken of.
    wide = import_checkpoint(tmp_path / "half", tmp_path / "wide", dtype="float32")
    assert (wide.same_model, wide.rounded, wide.difference, wide.source_dtype) == (True, False, 0.0, "bfloat16")
    kept = import_checkpoint(tmp_path / "half", tmp_path / "kept")
    assert (kept.same_model, kept.rounded, kept.difference, kept.dtype) == (True, False, 0.0, "bfloat16")
    # Rounding hides no other change.
    dense = MixerChoice.model_validate({"name": "depth_attention"})
    mixed = import_checkpoint(tmp_path / "stock", tmp_path / "mixed", mixer=dense, dtype="bfloat16")
    assert (mixed.same_model, mixed.rounded) == (False, True)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_no_number_of_key_heads_means_as_many_as_there_are_queries(kind: str, tmp_path: Path) -> None:
    model = stock_model(kind, num_key_value_heads=4, num_attention_heads=4)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": None}))
    decoder = load_checkpoint(tmp_path)
    assert decoder.config.resolved_kv_heads == 4
    assert_close(decoder(TOKENS), model(TOKENS).logits, 1e-5)


@torch.no_grad()
def test_another_order_of_the_key_norm_is_another_model(tmp_path: Path) -> None:
    model = stock_model("qwen3")
    model.save_pretrained(tmp_path / "stock")
    result = run("import", tmp_path / "stock", "--out", tmp_path / "post", "--k-norm", "post_rope")
    assert load_checkpoint(tmp_path / "post").config.k_norm == "post_rope"
    expected = (
        "It is not the source model any more: its key norms are post_rope, the source's pre_rope; logits differ by"
    )
    assert expected in result.output
    report = import_checkpoint(tmp_path / "stock", tmp_path / "other", k_norm="post_rope")
    assert not report.same_model
    assert report.difference == pytest.approx(departure(tmp_path / "post", model(TOKENS).logits), rel=1)
    # Norms whose weights are all 1 come to the same in either order, and are another model all the same.
    save_checkpoint(zoo.build("residual", {}, {"qk_norm": True}), tmp_path / "ones")
    same = import_checkpoint(tmp_path / "ones", tmp_path / "turned", k_norm="post_rope")
    assert (same.difference < 1e-6, same.same_model) == (True, False)
    # Ours says which it is, too.
    assert import_checkpoint(tmp_path / "post", tmp_path / "kept", k_norm="post_rope").same_model
    assert not import_checkpoint(tmp_path / "post", tmp_path / "back", k_norm="pre_rope").same_model
    with pytest.raises(CheckpointError, match=r"^k_norm is 'post'; it must be 'pre_rope' or 'post_rope'$"):
        import_checkpoint(tmp_path / "stock", tmp_path / "none", k_norm="post")  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [{"qk_norm": False}, LATENT], ids=["no q/k norms", "latent attention"])
def test_an_order_of_norms_that_are_not_there(model: Mapping[str, Any], tmp_path: Path) -> None:
    save_checkpoint(zoo.build("residual", {}, model), tmp_path / "source")
    result = run("import", tmp_path / "source", "--out", tmp_path / "ours", "--k-norm", "post_rope")
    assert result.exit_code == 2
    assert "it has no q/k norms, so k_norm 'post_rope' has no meaning; leave it out" in result.stderr
    assert not (tmp_path / "ours").exists()
    report = import_checkpoint(tmp_path / "source", tmp_path / "ours")
    assert (report.k_norm, report.source_k_norm, report.difference) == (None, None, 0.0)


def test_what_was_written_is_what_is_compared(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(decoder: Any, directory: Path) -> None:
        decoder.lm_head.weight.data.mul_(2)
        save_checkpoint(decoder, directory)

    monkeypatch.setattr("mixerzoo.exchange.importing.save_checkpoint", damaged)
    report = import_checkpoint(llama, tmp_path / "ours")
    assert (report.same_model, report.difference) == (False, pytest.approx(1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.2.mlp.up_proj.weight"])
def test_weights_that_are_not_finite(name: str, value: float, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "source")
    tensors = load_file(llama / "model.safetensors")
    tensors[name][-1, -1] = value
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    for options in ([], ["--dtype", "bfloat16"], ["--mixer", "denseformer"]):
        result = run("import", tmp_path / "source", "--out", tmp_path / "ours", *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"Error: {tmp_path / 'source'}: {name} has values that are not finite: nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_and_logits_beyond_a_range(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "source")
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight is beyond the range of float16; choose another dtype"):
        import_checkpoint(tmp_path / "source", tmp_path / "ours", dtype="float16")
    tensors["lm_head.weight"][:] = 3e38
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    with pytest.raises(CheckpointError, match="its logits are not finite, so they cannot be compared"):
        import_checkpoint(tmp_path / "source", tmp_path / "ours")
    tensors["lm_head.weight"][:] = 0
    save_file(tensors, tmp_path / "source" / "model.safetensors")
    assert import_checkpoint(tmp_path / "source", tmp_path / "ours").difference == 0


def test_a_target_within_the_source(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(llama, tmp_path / "source")
    before = sorted((tmp_path / "source").iterdir())
    monkeypatch.chdir(tmp_path / "source")
    for source, target in ((tmp_path / "source", tmp_path / "source" / "deep" / "ours"), (".", "ours")):
        result = run("import", source, "--out", target)
        assert result.exit_code == 2
        assert result.stderr == (
            f"Error: {target}: lies within the source {source}; choose a directory outside with --out\n"
        )
    assert sorted((tmp_path / "source").iterdir()) == before


@torch.no_grad()
def test_our_own_checkpoints_can_change_their_mixer(llama: Path, tmp_path: Path) -> None:
    dense = MixerChoice.model_validate({"name": "denseformer", "period": 2})
    import_checkpoint(llama, tmp_path / "first", mixer=dense)
    decoder = zoo.perturb(load_checkpoint(tmp_path / "first"))
    save_checkpoint(decoder, tmp_path / "trained")
    same = import_checkpoint(tmp_path / "trained", tmp_path / "same", mixer=dense)
    assert (same.new_parameters, same.left_out, same.difference) == (0, [], 0.0)
    assert torch.equal(load_checkpoint(tmp_path / "same")(TOKENS), decoder(TOKENS))
    other = import_checkpoint(
        tmp_path / "trained", tmp_path / "other", mixer=MixerChoice.model_validate({"name": "residual"})
    )
    assert other.left_out == [name for name in decoder.state_dict() if name.startswith("model.mixer.")]
    assert not other.same_model
    import_checkpoint(llama, tmp_path / "cla", mixer=MixerChoice.model_validate({"name": "cla", "group": 3}))
    with pytest.raises(
        MixerError, match=r"'residual' needs model.layers.1.self_attn.k_proj.weight, which .* 'cla' does"
    ):
        import_checkpoint(tmp_path / "cla", tmp_path / "back", mixer=MixerChoice.model_validate({"name": "residual"}))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", golden_cases.NAMES)
@torch.no_grad()
def test_reference_checkpoints_are_imported_in_every_method(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    import mixerzoo.hf  # noqa: F401  registers the classes

    golden = golden_cases.golden(name)
    golden.write(tmp_path / "reference")
    for k_norm in golden.k_norms:
        target = tmp_path / k_norm
        normed = any(name.endswith("k_norm.weight") for name in golden.tensors)
        options = ["--k-norm", k_norm] if normed else []
        result = run("import", tmp_path / "reference", "--out", target, *options, "--dtype", "float64")
        assert result.exit_code == 0, result.output
        # The format does not record the order, so the option says what the source is.
        assert "It computes what the source computes (largest difference of logits: 0.0e+00)." in result.output
        assert_close(load_checkpoint(target)(golden.tokens), golden.logits(k_norm), 1e-9)
        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float64)
        assert_close(model(golden.tokens).logits, golden.logits(k_norm), 1e-9)


def test_a_model_of_the_hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        assert not any(name.endswith((".bin", ".pt", ".pth", "*")) for name in allow_patterns)
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    import_checkpoint("somebody/some-model", tmp_path / "ours")
    assert asked == ["somebody/some-model"]
    assert ModelCard.load(tmp_path / "ours" / "README.md").data.base_model == "somebody/some-model"

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"^somebody/other: no such directory, and .* not give it: no connection$"
    ):
        import_checkpoint("somebody/other", tmp_path / "other")


@pytest.mark.parametrize(("kind", "changes"), STOCK[len(KINDS) :], ids=str)
@torch.no_grad()
def test_an_imported_model_is_one_of_the_hugging_face_ones(
    kind: str, changes: Mapping[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    import mixerzoo.hf  # noqa: F401  registers the classes

    stock = stock_model(kind, **changes)
    stock.save_pretrained(tmp_path / "stock")
    import_checkpoint(tmp_path / "stock", tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_close(model(TOKENS).logits, stock(TOKENS).logits, 1e-5)
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(TOKENS, **options), stock.generate(TOKENS, **options))
