"""A decoder as a Hugging Face model: the same weights, the same numbers, one format."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.hub import PushToHubMixin, create_and_tag_model_card

import hf_models
import zoo
from hf_models import fresh, model_of, shared
from mixerzoo import TextTokenizer, load_checkpoint, save_checkpoint
from mixerzoo.checkpoints.config_json import HF_KEYS, OWN_KEYS
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.hf import MixerZooConfig, MixerZooForCausalLM, MixerZooModel
from mixerzoo.model.config import ModelConfig
from zoo import ZooCase, assert_close, some_tokens

every_case = zoo.parametrized((*zoo.REGISTERED_CASES, *hf_models.LATENT_CASES), hf_models.CHOSEN)
DEPTH = ZooCase("depth_attention", {"stride": 1})
PADDING = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])


# One format.


@every_case
@torch.no_grad()
def test_what_transformers_saves_is_read_by_both_bit_for_bit(case: ZooCase, tmp_path: Path) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 7)
    save_checkpoint(decoder, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    logits = model(tokens).logits
    assert_close(logits, decoder(tokens))
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert torch.equal(again(tokens).logits, logits)
    assert torch.equal(load_checkpoint(tmp_path / "theirs")(tokens), decoder(tokens))
    ours, theirs = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert {key: theirs.get(key) for key in ours if key != "torch_dtype"} | {"torch_dtype": theirs["dtype"]} == ours
    assert (tmp_path / "theirs" / "modeling_mixerzoo.py").read_text() == (
        tmp_path / "ours" / "modeling_mixerzoo.py"
    ).read_text()


@pytest.mark.parametrize(
    "model",
    [
        {"tie_embeddings": True},
        {"scale_embeddings": True, "qk_norm": False},
        {"attention_bias": "qkv", "mlp_bias": True, "num_kv_heads": None},
        {"sliding_window": 3, "sliding_layers": (0, 2)},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "k_norm": "post_rope"},
    ],
    ids=str,
)
@torch.no_grad()
def test_round_trip_of_every_convention(model: dict[str, Any], tmp_path: Path) -> None:
    decoder = zoo.make(DEPTH, **model)
    theirs = model_of(decoder)
    logits = theirs(some_tokens(2, 7)).logits
    assert_close(logits, decoder(some_tokens(2, 7)))
    theirs.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(some_tokens(2, 7)).logits, logits)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == load_checkpoint_config(decoder, tmp_path / "ours")
    assert torch.equal(loaded(some_tokens(2, 7)), decoder(some_tokens(2, 7)))


def load_checkpoint_config(decoder: Any, directory: Path) -> ModelConfig:
    save_checkpoint(decoder, directory)
    return load_checkpoint(directory).config


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    decoder, model = fresh(DEPTH, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    assert_close(model(some_tokens(2, 7)).logits, decoder(some_tokens(2, 7)), tolerance)
    assert model_of(decoder, dtype=torch.float64).dtype == torch.float64


def test_the_configuration_has_every_key_of_the_file_with_our_defaults() -> None:
    fields = MixerZooConfig()
    defaults = ModelConfig.model_fields
    for name, key in (HF_KEYS | OWN_KEYS).items():
        assert hasattr(fields, key), key
        if not defaults[name].is_required() and name not in ("num_kv_heads", "head_dim", "vocab_size", "loop"):
            assert getattr(fields, key) == defaults[name].default, key


def test_a_looped_decoder_counts_steps_in_memory_and_layers_in_the_file() -> None:
    config = shared(ZooCase("residual", {}, {**zoo.LOOPED, **zoo.POST_ROPE})).config
    assert (config.num_hidden_layers, config.num_physical_layers, len(config.layer_types)) == (6, 4, 6)
    assert config.to_dict()["num_hidden_layers"] == 4
    assert MixerZooConfig(**config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mixer": {"name": "residal"}}, CheckpointError, "'residal' (did you mean 'residual'?)"),
        ({"mixer": {"name": "denseformer", "period": 0}}, CheckpointError, "mixer 'denseformer': period"),
        ({"hidden_act": "gelu"}, CheckpointError, "hidden_act is 'gelu'; this decoder computes 'silu'"),
        (
            {"num_key_value_heads": 3},
            CheckpointError,
            "num_attention_heads 4 is not divisible by num_key_value_heads 3",
        ),
        ({"head_dim": 7}, CheckpointError, "head_dim 7 is odd"),
        ({"mixer": {"name": "yoco", "window": 3}, "attention_window": 5}, MixerError, "know one window"),
        (
            {
                "attention": "mla",
                "mla": {"kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4},
                "num_key_value_heads": 2,
            },
            CheckpointError,
            "num_key_value_heads has no meaning with attention mla; remove it",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_built_says_why(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        MixerZooConfig(**change)


def test_a_checkpoint_without_its_weights_is_refused(tmp_path: Path) -> None:
    shared(DEPTH).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# The Auto classes.


def test_the_shim_loads_where_nobody_imported_mixerzoo(tmp_path: Path) -> None:
    decoder = zoo.make(DEPTH)
    save_checkpoint(decoder, tmp_path / "model")
    script = f"""
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
assert not any(name.startswith("mixerzoo") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)
model.save_pretrained({str(tmp_path / "again")!r})
torch.save(model(torch.arange(6)[None]).logits.detach(), {str(tmp_path / "logits")!r})
assert type(AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True)).__name__ == "MixerZooModel"
"""
    # Else PyTorch tells transformers of mixerzoo.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment, capture_output=True)
    assert_close(torch.load(tmp_path / "logits"), decoder(torch.arange(6)[None]))
    # The second save is like the first: no code is copied beside it.
    assert sorted(p.name for p in (tmp_path / "again").glob("*.py")) == ["modeling_mixerzoo.py"]
    assert_close(load_checkpoint(tmp_path / "again")(torch.arange(6)[None]), decoder(torch.arange(6)[None]))


def test_where_mixerzoo_is_installed_transformers_knows_it_and_asks_nothing(tmp_path: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["torch.backends"] == {"mixerzoo": "mixerzoo.autoload:register"}
    save_checkpoint(zoo.make(DEPTH, vocab_size=257), tmp_path)
    TextTokenizer.for_bytes().save(tmp_path)
    script = f"""
import sys, torch
from mixerzoo.autoload import register
register()  # as PyTorch does at the end of its import
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
heavy = ("transformers.modeling_utils", "mixerzoo.hf")
assert not any(name in sys.modules for name in heavy)
tokens = AutoTokenizer.from_pretrained({str(tmp_path)!r})("def ", return_tensors="pt")
print(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).generate(**tokens, max_new_tokens=1).shape[1])
print(type(AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)).__module__)
print(type(AutoConfig.for_model("mixerzoo", hidden_size=32)).__module__)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5", "mixerzoo.hf.modeling", "mixerzoo.hf.configuration"]
    assert "custom code" not in done.stderr


def test_registered_classes_are_found_without_trust(tmp_path: Path) -> None:
    save_checkpoint(zoo.make(DEPTH), tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MixerZooConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is MixerZooModel
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))) is MixerZooForCausalLM


# The model card.


def test_a_saved_model_has_a_card_and_yours_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(DEPTH)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "depth_attention" in card.data.tags
    assert f"# Depth-Attention, {model.num_parameters():,} parameters" in card.text
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL):
        exec(compile(code, "README.md", "exec"), {})
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("mine", [False, True], ids=["a new repository", "a repository with a card"])
def test_what_is_pushed_has_our_card_in_place_of_the_blank_one(
    mine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def send(_: Any, working_dir: str, *args: Any, **kwargs: Any) -> None:
        sent.append((Path(working_dir) / "README.md").read_text())

    def remote(*args: Any, **kwargs: Any) -> ModelCard:
        if mine:
            return ModelCard("---\ntags: [a]\n---\nmine")
        raise EntryNotFoundError("no card")

    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", send)
    monkeypatch.setattr(ModelCard, "load", remote)
    create_and_tag_model_card("me/model").save(tmp_path / "README.md")
    shared(DEPTH)._upload_modified_files(tmp_path, "me/model")
    assert ("mine" in sent[0], "# Depth-Attention" in sent[0]) == (mine, not mine)


# Weights.


@every_case
def test_a_model_from_its_configuration_has_initial_weights(case: ZooCase) -> None:
    config = shared(case).config
    model = MixerZooForCausalLM(config)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    reference = zoo.make(case, perturbed=False)
    for name, parameter in reference.mixer.named_parameters():
        ours = model.model.mixer.get_parameter(name)
        assert ours.shape == parameter.shape
        # Constants are the mixer's own; draws have its spread.
        if parameter.numel() < 2 or parameter.std() == 0:
            assert_close(ours.double(), parameter.double(), 1e-6)


def test_only_missing_weights_are_initialised(tmp_path: Path) -> None:
    case = ZooCase("attn_res")
    decoder = zoo.make(case)
    save_checkpoint(decoder, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.mixer.queries.3.gain"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert torch.equal(state.pop(lost), torch.ones(16, dtype=torch.float64))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state.items())


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = model_of(zoo.make(DEPTH, tie_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("size", [23, 11])
@pytest.mark.parametrize("case", hf_models.CHOSEN, ids=str)
@torch.no_grad()
def test_the_vocabulary_can_grow_and_shrink(case: ZooCase, size: int, tmp_path: Path) -> None:
    decoder, model = fresh(case)
    model.resize_token_embeddings(size, mean_resizing=False)
    known = some_tokens(2, 5, vocab_size=min(size, zoo.VOCAB_SIZE))
    common = min(size, zoo.VOCAB_SIZE)
    assert_close(model(known).logits[..., :common], decoder(known)[..., :common])
    model.save_pretrained(tmp_path)
    everything = torch.arange(size)[None]
    assert_close(load_checkpoint(tmp_path)(everything), model(everything).logits)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(everything).logits, model(everything).logits)


@torch.no_grad()
def test_the_form_that_was_saved_last_is_read(tmp_path: Path) -> None:
    _, model = fresh(DEPTH)
    for size in ("8KB", "1GB", "8KB", "8KB", "1GB"):
        model.lm_head.weight.mul_(1.5)
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "model.safetensors").exists() == (size == "1GB")
        logits = model(some_tokens(1, 4)).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(some_tokens(1, 4)).logits, logits)
        assert_close(load_checkpoint(tmp_path)(some_tokens(1, 4)), logits)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    _, model = fresh(DEPTH)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    for given in (None, False):
        with pytest.raises(MixerError, match=f"use_safetensors is {given}, but weights are read from safetensors only"):
            AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=given)


# Keys that are set anew.


CHANGES = [
    {"attention_window": 3},
    {"loop": {"prelude": 0, "count": 2, "coda": 0}},
    {"num_hidden_layers": 2},
    {"mixer": {"name": "moda"}},
    {"mixer": {"name": "residual"}, "k_norm": "post_rope"},
    {"rope_theta": 50.0},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("way", ["from_pretrained", "from_config", "set"])
@torch.no_grad()
def test_a_changed_key_changes_the_model_and_stays_changed(change: dict[str, Any], way: str, tmp_path: Path) -> None:
    save_checkpoint(zoo.make(DEPTH), tmp_path / "ours")
    if way == "from_pretrained":
        with warnings.catch_warnings():
            # Weights that a smaller or another model has no use for are named.
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **change)
    elif way == "from_config":
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "ours", **change))
    else:
        config = AutoConfig.from_pretrained(tmp_path / "ours")
        for key, value in change.items():
            setattr(config, key, value)
        config.save_pretrained(tmp_path / "changed")
        again = AutoConfig.from_pretrained(tmp_path / "changed")
        assert again.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}
        model = AutoModelForCausalLM.from_config(config)
    model = model.double().eval()
    for key, value in change.items():
        if key != "mixer":
            assert model.config.to_dict()[key] == value
    tokens = some_tokens(2, 7)
    assert len(model.model.plan.order) == model.config.num_hidden_layers == len(model.config.layer_types)
    logits = model(tokens).logits
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(tokens).logits, logits)
    assert_close(load_checkpoint(tmp_path / "saved")(tokens), logits)


def test_keys_of_others_are_refused() -> None:
    with pytest.raises(CheckpointError, match="rope_parameters is no key of mixerzoo; set rope_theta and rope_scaling"):
        MixerZooConfig(rope_parameters={"rope_type": "default", "rope_theta": 5.0})


def test_a_model_without_a_head_says_so(tmp_path: Path) -> None:
    shared(DEPTH).model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MixerZooModel"]


# What it computes.


@every_case
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_on_the_left_is_not_seen(case: ZooCase, implementation: str) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 7)
    if shared(case).config.needs_eager and implementation == "sdpa":
        pytest.skip("needs eager")
    model = model_of(decoder, attn_implementation=implementation)
    logits = model(tokens, attention_mask=PADDING).logits
    expected = decoder(tokens, left_padding=torch.tensor([3, 0]))
    real = PADDING.bool()
    assert_close(logits[real], expected[real])


def test_entries_along_depth_are_refused_elsewhere_than_in_eager() -> None:
    decoder = zoo.make(ZooCase("moda"))
    assert model_of(decoder).config._attn_implementation == "eager"
    with pytest.raises(MixerError, match=r"mixer 'moda' joins entries along depth to the softmax.*'sdpa' does not"):
        model_of(decoder, attn_implementation="sdpa")


@torch.no_grad()
def test_packed_positions_keep_documents_apart() -> None:
    decoder, tokens = zoo.shared(DEPTH), some_tokens(1, 7)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    packed = shared(DEPTH)(tokens, position_ids=positions, use_cache=False).logits
    assert_close(packed, decoder(tokens, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]])))


@torch.no_grad()
def test_embeddings_can_take_the_place_of_tokens() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 5)
    logits = model(inputs_embeds=model.get_input_embeddings()(tokens)).logits
    assert torch.equal(logits, model(tokens).logits)
    with pytest.raises(MixerError, match="looks tokens up by their ids"):
        shared(ZooCase("value_embedding"))(inputs_embeds=torch.zeros(1, 3, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match="pass either input_ids or inputs_embeds"):
        model()


@torch.no_grad()
def test_loss_and_kept_logits() -> None:
    model, tokens = shared(DEPTH), some_tokens(2, 6)
    out = model(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert_close(out.loss, expected, 1e-6)
    assert torch.equal(model(tokens, logits_to_keep=2).logits, out.logits[:, -2:])
    assert torch.equal(model(tokens, logits_to_keep=torch.tensor([1, 4])).logits, out.logits[:, [1, 4]])
    assert torch.equal(model(tokens, return_dict=False)[0], out.logits)


def test_loss_without_logits() -> None:
    model, tokens = fresh(DEPTH)[1], some_tokens(2, 6)
    labels = tokens.clone()
    labels[:, :2] = -100
    options: list[dict[str, Any]] = [{}, {"num_items_in_batch": 5}, {"shift_labels": tokens.roll(-1, 1)}]
    for given in options:
        expected, found = (model(tokens, labels=labels, skip_logits=skip, **given) for skip in (False, True))
        assert expected.logits is not None
        assert found.logits is None
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
        gradients = [torch.autograd.grad(out.loss, model.lm_head.weight)[0] for out in (found, expected)]
        assert_close(*gradients, 1e-6)
    # A loss of one's own is given the logits, whether they are handed out or not.
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum()
    assert model(tokens, labels=labels, skip_logits=True).logits is None
    with pytest.raises(MixerError, match="skip_logits: without labels"):
        model(tokens, skip_logits=True)


@torch.no_grad()
def test_hidden_states_are_what_attention_reads_and_attentions_its_weights() -> None:
    decoder, tokens = zoo.shared(ZooCase("residual")), some_tokens(2, 5)
    model = model_of(decoder, attn_implementation="eager")
    out = model(tokens, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 5
    assert torch.equal(out.hidden_states[0], decoder.model.embed_tokens(tokens))
    assert_close(decoder.lm_head(out.hidden_states[-1]), decoder(tokens))
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, 4, 5, 5)] * 4
    assert_close(torch.stack(out.attentions).sum(-1), torch.ones(4, 2, 4, 5, dtype=torch.float64))


# Gradients.


def gradients(model: MixerZooForCausalLM, tokens: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(tokens, labels=tokens).loss, list(model.parameters())))


@every_case
def test_activation_checkpointing_is_exact(case: ZooCase) -> None:
    model, tokens = shared(case), some_tokens(2, 5)
    model.train()
    try:
        expected = gradients(model, tokens)
        model._set_gradient_checkpointing(True, recomputed)
        for ours, theirs in zip(gradients(model, tokens), expected, strict=True):
            assert_close(ours, theirs, 1e-12)
    finally:
        model._set_gradient_checkpointing(False)
        model.eval()


def recomputed(run: Any, *given: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(run, *given, use_reentrant=False)


def enable(model: MixerZooForCausalLM, **options: Any) -> None:
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None)


def test_activation_checkpointing_recomputes_and_reentrant_is_refused() -> None:
    _, model = fresh(DEPTH)
    model.train()
    enable(model)
    calls = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(model, some_tokens(2, 5))
    assert len(calls) == 2
    with pytest.raises(MixerError, match="re-entrant activation checkpointing loses the gradients"):
        enable(model, use_reentrant=True)
