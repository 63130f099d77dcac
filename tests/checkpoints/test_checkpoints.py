"""What is saved loads bit for bit, stock checkpoints load as they are, and what cannot be read says why."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from golden_cases import golden
from mixerzoo import load_checkpoint, load_registry, save_checkpoint
from mixerzoo.checkpoints.config_json import own_config
from mixerzoo.checkpoints.foreign_config import read_foreign
from mixerzoo.checkpoints.save import config_dict
from mixerzoo.errors import BackendError, CheckpointError, MixerError
from stock import KINDS, exact, stock_model
from zoo import Case, assert_close, some_tokens

every_registered_case = pytest.mark.parametrize("case", zoo.REGISTERED_CASES, ids=str)


# Round trip.


@every_registered_case
@pytest.mark.parametrize("dtype", zoo.DTYPES, ids=str)
@torch.no_grad()
def test_round_trip_is_bit_for_bit(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = zoo.make(case, dtype=dtype)
    save_checkpoint(decoder, tmp_path / "deep" / "folder")
    loaded = load_checkpoint(tmp_path / "deep" / "folder")
    assert type(loaded.mixer) is type(decoder.mixer)
    assert loaded.mixer.config == decoder.mixer.config
    assert loaded.config == decoder.config
    ours, theirs = loaded.state_dict(), decoder.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name]), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(some_tokens(2, 4)), decoder(some_tokens(2, 4)))


@pytest.mark.parametrize(
    "model",
    [
        {"tie_embeddings": True},
        {"qk_norm": False},
        {"k_norm": "post_rope"},
        {"scale_embeddings": True},
        {"rope_theta": 500000.0, "norm_eps": 1e-6, "init_std": 0.5},
        {"num_kv_heads": None},
        {"head_dim": None},
        {"num_heads": 6, "num_kv_heads": 1, "head_dim": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_round_trip_of_every_convention(model: dict[str, Any], tmp_path: Path) -> None:
    decoder = zoo.make(Case("depth_attention"), **model)
    save_checkpoint(decoder, tmp_path)
    loaded = load_checkpoint(tmp_path)
    resolved = {"num_kv_heads": decoder.shape.num_kv_heads, "head_dim": decoder.shape.head_dim}
    assert loaded.config == decoder.config.model_copy(update=resolved)
    assert torch.equal(loaded(some_tokens(2, 4)), decoder(some_tokens(2, 4)))
    assert loaded.num_parameters() == decoder.num_parameters()


def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    decoder = zoo.make(Case("residual"), tie_embeddings=True)
    save_checkpoint(decoder, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_checkpoint(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@torch.no_grad()
def test_dtype_and_k_norm_can_be_chosen(tmp_path: Path) -> None:
    decoder = zoo.make(Case("depth_attention"), dtype=torch.float32)
    save_checkpoint(decoder, tmp_path)
    for dtype in (torch.float64, "float64"):
        loaded = load_checkpoint(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
        assert torch.equal(loaded.lm_head.weight.float(), decoder.lm_head.weight)
    other = load_checkpoint(tmp_path, k_norm="post_rope")
    assert (decoder.config.k_norm, other.config.k_norm) == ("pre_rope", "post_rope")
    assert not torch.allclose(other(some_tokens(1, 4)), decoder(some_tokens(1, 4)))
    assert load_checkpoint(tmp_path, attention_backend="eager").config.attention_backend == "eager"


def test_the_config_is_plain_and_says_where_the_mixer_is_from(tmp_path: Path) -> None:
    decoder = zoo.make(Case("attn_res", {"block_size": 3}))
    save_checkpoint(decoder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == config_dict(decoder)
    assert config["model_type"] == "mixerzoo"
    assert config["mixer"] == {"name": "attn_res", "dialect": "kimi", "block_size": 3, "recency_bias": 3.0}
    assert config["mixer_plugin"]["distribution"] == load_registry().get("attn_res").distribution
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_key_value_heads"]) == (16, 4, 2)
    assert config["torch_dtype"] == "float64"


def test_saving_twice_leaves_the_last_and_nothing_else(tmp_path: Path) -> None:
    save_checkpoint(zoo.make(Case("denseformer")), tmp_path)
    last = zoo.make(Case("residual"))
    save_checkpoint(last, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "modeling_mixerzoo.py",
    ]
    assert torch.equal(load_checkpoint(tmp_path).lm_head.weight, last.lm_head.weight)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = zoo.make(Case("residual"))
    save_checkpoint(decoder, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mixerzoo.checkpoints.save.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(zoo.make(Case("denseformer")), tmp_path)
    assert torch.equal(load_checkpoint(tmp_path).lm_head.weight, decoder.lm_head.weight)


# Damage.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    save_checkpoint(zoo.make(Case("denseformer"), dtype=torch.float32), tmp_path)
    return tmp_path


def rewrite_config(directory: Path, **changes: Any) -> None:
    """Replace keys of config.json; None removes one."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def rewrite_tensors(directory: Path, **changes: Tensor | None) -> None:
    """Replace tensors of model.safetensors; None removes one."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def refusal(directory: Path, **arguments: Any) -> str:
    """The message of the CheckpointError that loading raises; it always names the place."""
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(directory, **arguments)
    assert str(directory) in str(failure.value)
    return str(failure.value)


def test_no_such_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").endswith("nowhere: no such directory")
    (tmp_path / "file").write_text("")
    assert "no such directory" in refusal(tmp_path / "file")


def test_missing_files(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert "it has no model.safetensors" in refusal(saved)
    (saved / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin: pickled weights are not read, convert them" in refusal(saved)
    (saved / "config.json").unlink()
    assert "not a checkpoint: it has no config.json" in refusal(saved)


@pytest.mark.parametrize("size", [0, 4, 100, -1], ids=["empty", "no header", "half a header", "one byte short"])
def test_a_truncated_file(saved: Path, size: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors: damaged or cut short: " in refusal(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged: "),
        (b"", "damaged: it is empty"),
        (b"[1]", "damaged: expected a JSON object"),
        (b"\xff\xfe", "damaged: "),
    ],
)
def test_a_corrupt_config(saved: Path, content: bytes, message: str) -> None:
    (saved / "config.json").write_bytes(content)
    assert f"config.json: {message}" in refusal(saved)


def test_tensors_left_over_missing_and_misshapen(saved: Path) -> None:
    rewrite_tensors(saved, **{"model.extra.weight": torch.ones(2), "model.norm.weight": None})
    message = refusal(saved)
    assert "tensors that nothing reads: model.extra.weight" in message
    assert "tensors that are missing: model.norm.weight" in message
    rewrite_tensors(saved, **{"model.extra.weight": None, "model.norm.weight": torch.ones(3)})
    assert "model.norm.weight has shape (3,); the configuration calls for (16,)" in refusal(saved)


def test_long_lists_are_cut(saved: Path) -> None:
    rewrite_tensors(saved, **{f"extra.{number:02}": torch.ones(1) for number in range(11)})
    assert "extra.06, extra.07 and 3 more" in refusal(saved)


def test_a_mixer_that_is_not_installed(saved: Path) -> None:
    rewrite_config(
        saved,
        mixer={"name": "denseformr", "dilation": 1},
        mixer_plugin={"distribution": "somebody-s-mixers", "version": "3.1"},
    )
    message = refusal(saved)
    assert "comes from the plugin somebody-s-mixers 3.1, which is not installed" in message
    assert "pip install somebody-s-mixers" in message
    assert "did you mean 'denseformer'?" in message


@pytest.mark.parametrize("mixer", [None, "denseformer", {"dilation": 1}, {"name": 3}], ids=str)
def test_a_config_that_names_no_mixer(saved: Path, mixer: Any) -> None:
    rewrite_config(saved, mixer=mixer)
    assert "the key 'mixer' is missing or names no mixer" in refusal(saved)


@pytest.mark.parametrize("plugin", [None, "somebody", ["somebody"], {"distribution": 3}], ids=str)
def test_a_damaged_plugin_entry(saved: Path, plugin: Any) -> None:
    rewrite_config(saved, mixer={"name": "unheard_of"}, mixer_plugin=plugin)
    assert "which plugin it came from is not recorded" in refusal(saved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 0}, "mixer 'denseformer': dilation: "),
        ({"dilatation": 2}, "mixer 'denseformer': dilatation: unknown key (did you mean 'dilation'?)"),
        ({"period": "2"}, "mixer 'denseformer': period: expected a whole number, got '2'"),
    ],
)
def test_mixer_options_that_cannot_be(saved: Path, options: dict[str, Any], message: str) -> None:
    rewrite_config(saved, mixer={"name": "denseformer", **options})
    assert message in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "the key 'hidden_size' is required"),
        ({"num_hidden_layers": None}, "the key 'num_hidden_layers' is required"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers: expected a whole number, got '4'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps: "),
        ({"num_attention_heads": 5}, "num_attention_heads 5 is not divisible by num_key_value_heads 2"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"loop": {"count": 0}}, "loop.count: "),
        ({"loop": {"cuont": 2}}, "unknown key (did you mean 'count'?)"),
        ({"k_norm": "post"}, "k_norm: 'post' is none of pre_rope, post_rope"),
        ({"vocab_size": None}, "vocab_size"),
    ],
    ids=str,
)
def test_model_configurations_that_cannot_be(saved: Path, changes: dict[str, Any], message: str) -> None:
    rewrite_config(saved, **changes)
    assert message in refusal(saved)


def test_a_configuration_of_other_sizes_than_the_weights(saved: Path) -> None:
    rewrite_config(saved, num_hidden_layers=5)
    assert "tensors that are missing: model.layers.4." in refusal(saved)
    rewrite_config(saved, num_hidden_layers=3)
    assert "tensors that nothing reads: model.layers.3." in refusal(saved)


def test_a_tied_head_that_differs(saved: Path) -> None:
    rewrite_config(saved, tie_word_embeddings=True)
    assert "tie_word_embeddings is true, but lm_head.weight differs from the embedding" in refusal(saved)


def test_an_unknown_dtype(saved: Path) -> None:
    with pytest.raises(
        BackendError, match=r"cannot be of dtype 'flaot32' \(did you mean 'float32'\?\); known: float64"
    ):
        load_checkpoint(saved, dtype="flaot32")
    for dtype in ("nn", "int32", torch.int32, "float8_e4m3fn", "complex64"):
        with pytest.raises(BackendError, match="weights cannot be of dtype"):
            load_checkpoint(saved, dtype=dtype)


def test_a_backend_that_cannot_run(saved: Path) -> None:
    with pytest.raises(BackendError, match="'xformers' needs a CUDA device"):
        load_checkpoint(saved, attention_backend="xformers")


def test_an_index_without_a_map_and_a_missing_shard(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    index = saved / "model.safetensors.index.json"
    index.write_text("{}", encoding="utf-8")
    assert "model.safetensors.index.json: damaged: it has no weight_map" in refusal(saved)
    for name in (3, "", "..", "../model.safetensors", "/model.safetensors", "deep/model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        message = f"index.json: weight_map says that a is in {name!r}; it must be a file of the same directory"
        assert message in refusal(saved)
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    assert "it has no model-00002-of-00002.safetensors" in refusal(saved)


# Other projects' checkpoints.

VANILLA = golden("vanilla_base")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; known: mixerzoo, llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type is None; known: "),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling has rope_type 'longrope', which"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling has rope_type 'dynamic', which changes"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: the key 'factor' is required"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "rope_scaling.factor: "),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
            "of type 'linear' has beta, which is not",
        ),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "'default' has mrope_section, which"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters is {'full_attention'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor of rope_parameters is 0.5"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_theta": "big"}, "rope_theta is 'big'; it must be a number over 0"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which this decoder does not compute"),
        ({"attention_bias": True}, "attention_bias is true, but the weights hold no bias of any"),
        ({"mlp_bias": True}, "mlp_bias is true, but the weights hold no bias of any MLP"),
        ({"mlp_bias": "yes"}, "mlp_bias is 'yes'; it must be true or false"),
        (
            {"model_type": "mistral", "attention_bias": True},
            "attention_bias is true, which means nothing in a model of",
        ),
        ({"model_type": "qwen3", "mlp_bias": True}, "mlp_bias is true, which means nothing in a model of type qwen3"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, which this decoder does not"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["sliding_attention"]},
            "layer_types has 1 entries for",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear_attention"]},
            "layer_types has 'linear_attention', which",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 8 is not divisible by num_key_value_heads 3"),
        (
            {"model_type": "qwen2"},
            "a model of type qwen2 has biases of q, k and v, but the weights hold no bias of any",
        ),
        ({"use_qk_norm": False}, "use_qk_norm is false, but the weights hold q/k norms"),
        ({"hidden_size": None}, "the key 'hidden_size' is required"),
        ({"baseline_mode": "unheard"}, "baseline_mode is 'unheard', which no installed mixer reads"),
    ],
    ids=str,
)
def test_foreign_configurations_that_mean_something_else(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(VANILLA.write(tmp_path, config=config))


def test_defaults_of_keys_that_are_absent(tmp_path: Path) -> None:
    keys = [
        "rms_norm_eps",
        "rope_theta",
        "head_dim",
        "tie_word_embeddings",
        "scale_embeds",
        "hidden_act",
        "use_qk_norm",
    ]
    config = load_checkpoint(VANILLA.write(tmp_path, config=dict.fromkeys(keys))).config
    assert (config.norm_eps, config.rope_theta, config.resolved_head_dim) == (1e-6, 10000.0, 8)
    assert (config.tie_embeddings, config.scale_embeddings, config.qk_norm) == (False, False, True)
    many = golden("depth_attention_mha_s3_w1_noqknorm").write(tmp_path / "many", config={"num_key_value_heads": None})
    assert load_checkpoint(many).config.resolved_kv_heads == 8


def test_norms_that_the_configuration_promises(tmp_path: Path) -> None:
    tensors = {name: t for name, t in VANILLA.tensors.items() if not name.endswith(("q_norm.weight", "k_norm.weight"))}
    assert "use_qk_norm is true, but the weights hold no q/k norms" in refusal(VANILLA.write(tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    ("name", "mixer", "config"),
    [
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_stride": "2"}),
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_stride": 2.5}),
        ("depth_attention_gqa_s2_w0", "depth_attention", {"depth_attention_recent_window": [1]}),
        ("denseformer_d1_p1", "denseformer", {"denseformer_dwa_dilation": 0}),
        ("denseformer_d1_p1", "denseformer", {"denseformer_dwa_period": "1"}),
        ("attnres_b2", "attn_res", {"attnres_block_size": 0}),
        ("attnres_b2", "attn_res", {"attnres_recency_bias_init": "high"}),
    ],
    ids=str,
)
def test_mixer_keys_of_the_wrong_kind(name: str, mixer: str, config: dict[str, Any], tmp_path: Path) -> None:
    assert f"mixer '{mixer}'" in refusal(golden(name).write(tmp_path, config=config))


@pytest.mark.parametrize("name", ["vanilla_base", "attnres_b2", "denseformer_d1_p1", "depth_attention_gqa_s2_w0"])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_foreign_configurations_that_lack_a_size(name: str, key: str, tmp_path: Path) -> None:
    assert key in refusal(golden(name).write(tmp_path, config={key: None}))


def test_keys_that_are_not_understood_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = VANILLA.write(tmp_path, config={"residual_multiplier": 0.5, "unset": False, "bos_token_id": 1})
    with caplog.at_level(logging.WARNING):
        load_checkpoint(directory)
    (record,) = caplog.records
    assert record.getMessage().endswith("keys that are not understood and were ignored: residual_multiplier")


# Stock transformers models.


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_stock_transformers_checkpoints(
    kind: str, tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theta = {"rope_theta": 5000.0, "rope_type": "default"}
    model = stock_model(kind, tie_word_embeddings=tied, rms_norm_eps=3e-6, rope_parameters=theta)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="mixerzoo"):
        decoder = load_checkpoint(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("mixerzoo")]
    assert decoder.mixer.name == "residual"
    assert decoder.config.qk_norm == (kind == "qwen3")
    assert decoder.config.tie_embeddings == tied
    tokens = some_tokens(2, 9)
    assert_close(decoder(tokens), model(tokens).logits, 1e-5)
    doubled = load_checkpoint(tmp_path, dtype=torch.float64)
    assert_close(doubled(tokens), exact(model)(tokens).logits)


@torch.no_grad()
def test_a_sharded_stock_checkpoint(tmp_path: Path) -> None:
    model = stock_model("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    tokens = some_tokens(1, 5)
    assert_close(load_checkpoint(tmp_path, dtype="float64")(tokens), exact(model)(tokens).logits, 1e-9)


ROPE = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, every option": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 1.5,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, a ramp that ends after the last pair": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.01,
    },
    "yarn, its own factor": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
}
FEATURES: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "llama", {"rope_parameters": {**rope, "rope_theta": 100.0}}) for name, rope in ROPE.items()),
    ("yarn", "qwen3", {"rope_parameters": {**ROPE["yarn"], "rope_theta": 1e6}}),
    ("bias", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("bias", "qwen3", {"attention_bias": True}),
    ("window", "mistral", {"sliding_window": 4}),
    ("window of some", "qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("window of some", "qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
    (
        "window by layer",
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    ("window of none", "qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3}),
    ("window switched off", "qwen3", {"use_sliding_window": False, "sliding_window": 4096}),
]


@pytest.mark.parametrize(("kind", "changes"), [f[1:] for f in FEATURES], ids=[f"{f[1]}, {f[0]}" for f in FEATURES])
@torch.no_grad()
def test_what_stock_models_have_besides(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = stock_model(kind, **changes)
    model.save_pretrained(tmp_path / "stock")
    decoder = load_checkpoint(tmp_path / "stock")
    tokens = some_tokens(2, 40)
    assert_close(decoder(tokens), model(tokens).logits, 1e-5)
    doubled = load_checkpoint(tmp_path / "stock", dtype=torch.float64)
    expected = exact(model)(tokens).logits
    assert_close(doubled(tokens), expected)
    # The cache keeps to the windows, and nothing is lost on the way through our own layout.
    save_checkpoint(doubled, tmp_path / "ours")
    again = load_checkpoint(tmp_path / "ours")
    assert again.config == doubled.config
    cache = again.new_cache(2)
    assert_close(torch.cat([again(part, cache) for part in tokens.split([1, 7, 2, 30], dim=1)], dim=1), expected)


@pytest.mark.parametrize("first", range(4))
def test_windows_counted_from_a_layer(first: int, tmp_path: Path) -> None:
    """Older files have no list of layer types."""
    changes = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": first}
    stock_model("qwen2", **changes).save_pretrained(tmp_path)
    listed = load_checkpoint(tmp_path).config
    rewrite_config(tmp_path, layer_types=None)
    assert load_checkpoint(tmp_path).config == listed
    windows = [None] * first + [4] * (3 - first)
    assert list(load_checkpoint(tmp_path).plan.windows) == windows


@pytest.mark.parametrize("rope", ROPE.values(), ids=ROPE)
def test_the_old_way_to_write_scaled_rope(rope: dict[str, Any], tmp_path: Path) -> None:
    stock_model("llama", rope_parameters={**rope, "rope_theta": 100.0}).save_pretrained(tmp_path)
    new = load_checkpoint(tmp_path).config
    old = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    rewrite_config(tmp_path, rope_parameters=None, rope_scaling=old, rope_theta=100.0)
    assert load_checkpoint(tmp_path).config == new
    assert new.rope_scaling is not None


@pytest.mark.parametrize("kind", KINDS)
def test_absent_keys_have_the_defaults_of_their_class(kind: str, tmp_path: Path) -> None:
    """What transformers' own classes fill in is what an absent key means."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 32}
    config = transformers.AutoConfig.for_model(
        kind, **sizes, vocab_size=8, rope_scaling={"type": "yarn", "factor": 2.0}
    )
    full = json.loads(config.to_json_string(use_diff=False))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (8, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 128),
    }
    shapes |= {"model.layers.0.self_attn.k_proj.bias": (64,)} if kind == "qwen2" else {}
    shapes |= {"model.layers.0.self_attn.k_norm.weight": (2,)} if kind == "qwen3" else {}
    short = {**sizes, "vocab_size": 8, "model_type": kind, "rope_scaling": {"type": "yarn", "factor": 2.0}}
    ours, theirs = (read_foreign(raw, shapes, tmp_path) for raw in (short, full))
    assert own_config(ours.config, "residual", ours.options) == own_config(theirs.config, "residual", theirs.options)


def test_frequencies_of_old_conversions_are_left_alone(tmp_path: Path) -> None:
    stock_model("llama").save_pretrained(tmp_path)
    plain = load_checkpoint(tmp_path)
    rewrite_tensors(tmp_path, **{"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load_checkpoint(tmp_path)(some_tokens(1, 4)), plain(some_tokens(1, 4)))


def test_a_mixer_that_shares_across_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixerError, match=r"step 1 read keys or values of step 0, and model.sliding_layers"):
        zoo.build("cla", {"group": 2}, {"sliding_window": 4, "sliding_layers": (1,)})
    assert zoo.build("cla", {"group": 2}, {"sliding_window": 4, "sliding_layers": (0, 1)}).plan.windows == (
        4,
        4,
        None,
        None,
    )
    narrower = zoo.build("yoco", {"window": 2}, {"sliding_window": 3}).plan
    assert (narrower.window(0), narrower.window(3)) == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_new_biases_are_zero(dtype: torch.dtype) -> None:
    decoder = zoo.build("residual", {}, {"attention_bias": "qkv", "mlp_bias": True}, dtype=dtype)
    biases = {name: tensor for name, tensor in decoder.state_dict().items() if name.endswith("bias")}
    assert len(biases) == 4 * 6
    assert not any(tensor.any() for tensor in biases.values())
    plain = zoo.build("residual", {}, {}, dtype=dtype)
    assert torch.equal(decoder(some_tokens(1, 5)), plain(some_tokens(1, 5)))


# Weights in several dtypes, forms and places.


@pytest.mark.parametrize(
    ("named", "expected"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float64", "float32"), ("auto", "float32"), (None, "float32")],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@torch.no_grad()
def test_weights_of_several_dtypes_get_one(
    key: str, named: str | None, expected: str, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = load_checkpoint(saved)
    rewrite_config(saved, **({"torch_dtype": None} | {key: named}))
    rewrite_tensors(saved, **{"model.norm.weight": whole.model.norm.weight.bfloat16()})
    with caplog.at_level(logging.WARNING):
        loaded = load_checkpoint(saved)
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {f"torch.{expected}"}
    (record,) = caplog.records
    assert record.getMessage() == f"{saved}: weights are stored as bfloat16 and float32; all are read as {expected}"
    assert torch.equal(loaded.lm_head.weight, whole.lm_head.weight.to(loaded.lm_head.weight.dtype))
    assert loaded(some_tokens(1, 4)).isfinite().all()
    assert load_checkpoint(saved, dtype="float64").model.norm.weight.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_that_cannot_be_computed_with(dtype: torch.dtype, saved: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite_tensors(saved, **{name: load_file(saved / "model.safetensors")[name].to(dtype)})
    found = str(dtype).removeprefix("torch.")
    for wanted in (None, "float32"):
        message = refusal(saved, dtype=wanted)
        assert f"{name} is stored as {found}; weights must be float64, float32, bfloat16, float16: convert" in message


def into_shards(directory: Path) -> list[str]:
    """Put the weights into two files with an index; model.safetensors stays."""
    tensors = load_file(directory / "model.safetensors")
    names = list(tensors)
    parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return list(parts)


def test_one_file_beside_shards(saved: Path) -> None:
    whole = load_checkpoint(saved).state_dict()
    shards = into_shards(saved)
    message = refusal(saved)
    assert "it has model.safetensors, and shards with model.safetensors.index.json: which of the two" in message
    (saved / "model.safetensors").rename(saved / "aside")
    assert all(torch.equal(t, whole[name]) for name, t in load_checkpoint(saved).state_dict().items())
    # An index that is left over from shards, or names the one file, takes nothing away from it.
    (saved / "aside").rename(saved / "model.safetensors")
    for shard in shards:
        (saved / shard).unlink()
    assert load_checkpoint(saved).state_dict().keys() == whole.keys()
    index = {"weight_map": dict.fromkeys(whole, "model.safetensors")}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert load_checkpoint(saved).state_dict().keys() == whole.keys()


@pytest.mark.parametrize("beside", [True, False], ids=["one file too", "shards alone"])
@torch.no_grad()
def test_saving_replaces_shards(beside: bool, saved: Path) -> None:
    into_shards(saved)
    if not beside:
        (saved / "model.safetensors").unlink()
    (saved / "mine.safetensors").write_bytes(b"")
    last = zoo.make(Case("residual"))
    save_checkpoint(last, saved)
    kept = {"config.json", "mine.safetensors", "model.safetensors", "modeling_mixerzoo.py"}
    assert {path.name for path in saved.iterdir()} == kept
    assert torch.equal(load_checkpoint(saved).lm_head.weight, last.lm_head.weight)


def test_saving_removes_nothing_that_a_damaged_index_names(
    saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    precious = tmp_path_factory.mktemp("elsewhere") / "precious"
    precious.write_text("mine")
    for name in (str(precious), f"../{precious.parent.name}/precious"):
        (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        save_checkpoint(zoo.make(Case("residual")), saved)
        assert precious.read_text() == "mine"
        assert not (saved / "model.safetensors.index.json").exists()


def test_weights_under_another_name(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "weights.safetensors")
    assert "it has no model.safetensors; it has weights.safetensors: rename what holds the" in refusal(saved)
    (saved / "model.safetensors").mkdir()
    assert refusal(saved) == f"{saved / 'model.safetensors'}: is a directory; it must be a file"


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "stock"])
def test_a_model_without_its_head(ours: bool, tmp_path: Path) -> None:
    from transformers import AutoModel

    import mixerzoo.hf  # noqa: F401  registers the classes

    if ours:
        save_checkpoint(zoo.make(Case("denseformer"), dtype=torch.float32), tmp_path / "whole")
    else:
        stock_model("qwen3").save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bare")
    kind = "MixerZooModel" if ours else "Qwen3Model"
    assert f"it has no head: these are the weights of a bare model ({kind}), as AutoModel" in refusal(tmp_path / "bare")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    assert "it has no head (lm_head.weight); tie_word_embeddings must be true if" in refusal(tmp_path / "whole")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 100),
        *((key, 4096) for key in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim")),
    ],
)
def test_sizes_beyond_the_weights(key: str, value: int, saved: Path) -> None:
    rewrite_config(saved, **{key: value})
    assert f"{key} is {value}, " in refusal(saved)
    rewrite_config(saved, **{key: 10**18})
    assert f"{key}" in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 10**400}, "num_hidden_layers"),
        ({"attention_window": 2**63}, "attention_window"),
        ({"mixer": {"name": "denseformer", "period": 2**64}}, "mixer.period"),
        ({"loop": {"count": 10**30}}, "loop.count"),
    ],
)
def test_numbers_that_no_machine_counts_in(changes: dict[str, Any], name: str, saved: Path) -> None:
    rewrite_config(saved, **changes)
    assert f"{name} is 1" in refusal(saved) or f"{name} is 9" in refusal(saved)
    assert refusal(saved).endswith(", which is too large")


def test_a_loop_beyond_any_decoder(saved: Path) -> None:
    rewrite_config(saved, loop={"prelude": 1, "coda": 1, "count": 10**9})
    assert "loop.count" in refusal(saved)
    assert len(refusal(saved)) < 300


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", [64]),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, "2"]),
        ("bos_token_id", 1.5),
        ("bos_token_id", [1]),
        ("pad_token_id", True),
        ("hidden_act", "gelu"),
        ("hidden_act", ["silu"]),
    ],
)
def test_what_a_decoder_does_not_read_and_its_users_do(key: str, value: Any, saved: Path) -> None:
    rewrite_config(saved, **{key: value})
    assert f"{key} is " in refusal(saved)


def test_a_configuration_without_a_vocabulary(saved: Path) -> None:
    rewrite_config(saved, vocab_size=None)
    assert "config.json: the key 'vocab_size' is required" in refusal(saved)


def test_options_far_beyond_any_machine(saved: Path) -> None:
    rewrite_config(saved, mixer={"name": "hyper_connections", "num_streams": 2 * 10**9})
    assert "config.json: no decoder of these sizes can be built: " in refusal(saved)


# Any value under any key that is read ends in an answer, which is a decoder or a refusal.

#: What no key, or few, can mean.
JUNK = ["x", "10", [], ["linear"], {}, {"a": 1}, -0.5, 2.5, True, -1, 0, 10**12, 10**400, 1e308, 1e-320, float("nan")]
READ = [
    *("attention_bias", "baseline_mode", "head_dim", "hidden_act", "hidden_size", "initializer_range"),
    *("intermediate_size", "layer_types", "max_position_embeddings", "max_window_layers", "mlp_bias", "model_type"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "original_max_position_embeddings"),
    *("partial_rotary_factor", "quantization_config", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta"),
    *("scale_embeds", "sliding_window", "tie_word_embeddings", "torch_dtype", "use_qk_norm", "use_sliding_window"),
    "vocab_size",
]
#: Under these, anything goes where nothing needs them.
FREE = {"max_window_layers", "original_max_position_embeddings", "sliding_window", "torch_dtype"}
SCALED: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "truncate": True,
    },
    {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]
WINDOWS = {"layer_types": None, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}


@torch.no_grad()
def outcome(directory: Path, config: dict[str, Any]) -> str | None:
    """Why a configuration is refused, or None where it loads and computes."""
    path = directory / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    try:
        load_checkpoint(directory)(some_tokens(1, 5))
    except CheckpointError as error:
        message = str(error)
    else:
        return None
    assert all(line.startswith(str(directory)) for line in message.splitlines()), message
    assert len(message) < 800
    return message


@pytest.fixture(params=KINDS)
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A stock checkpoint, and its config.json with frequencies in the older spelling."""
    stock_model(request.param).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    return tmp_path, config


def test_no_value_under_any_key_gets_past_an_answer(stock: tuple[Path, dict[str, Any]]) -> None:
    directory, config = stock
    assert outcome(directory, config) is None
    for key in READ:
        refused = [outcome(directory, {**config, key: value}) for value in JUNK]
        assert any(refused) or key in FREE, key
        for message, value in zip(refused, JUNK, strict=True):
            if isinstance(value, str | dict | float) and value not in ({}, 1e308, 1e-320) and key not in FREE:
                numeric = value == 2.5 and key in ("initializer_range", "rms_norm_eps", "rope_theta")
                assert message is not None or numeric, (key, value)


def test_no_value_within_rope_scaling_gets_past_an_answer(stock: tuple[Path, dict[str, Any]]) -> None:
    directory, config = stock
    for scaling in SCALED:
        assert outcome(directory, {**config, "rope_scaling": scaling}) is None
        for key in [*scaling, "rope_theta", "partial_rotary_factor", "unheard_of"]:
            for value in JUNK:
                message = outcome(directory, {**config, "rope_scaling": {**scaling, key: value}})
                assert message is not None or not isinstance(value, str | list | dict), (key, value)
        for key in ("max_position_embeddings", "original_max_position_embeddings"):
            for value in JUNK:
                given = {**config, "rope_scaling": {**scaling, key: value}} | {key: value}
                assert outcome(directory, given) or isinstance(value, int), (key, value)
    for kind in (["linear"], "longrope", 3):
        message = outcome(directory, {**config, "rope_scaling": {"type": kind, "factor": 2}})
        assert message is not None
        assert f"has rope_type {kind!r}, which" in message


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_no_value_about_windows_gets_past_an_answer(kind: str, tmp_path: Path) -> None:
    stock_model(kind).save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text(encoding="utf-8")), **WINDOWS}
    assert outcome(tmp_path, config) is None
    for key in [*WINDOWS, "num_hidden_layers"]:
        for value in JUNK:
            message = outcome(tmp_path, {**config, key: value})
            assert message is not None or isinstance(value, int), (key, value)
