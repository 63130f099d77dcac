"""What cannot be read says why, whatever the damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_edits import refusal, rewrite_config, rewrite_tensors
from mixerzoo import load_checkpoint
from mixerzoo.errors import BackendError, CheckpointError
from stock import KINDS, stock_model
from zoo import some_tokens

# Damage.


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


def test_a_mixer_of_another_plugin_is_not_that_of_the_same_name(saved: Path) -> None:
    rewrite_config(saved, mixer_plugin={"distribution": "somebody-s-mixers", "version": "3.1"})
    assert "which is not installed here (pip install somebody-s-mixers)" in refusal(saved)


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
    with pytest.raises(BackendError, match=r"no attention backend 'fash' \(did you mean 'flash'\?\); known: sdpa"):
        load_checkpoint(saved, attention_backend="fash")  # type: ignore[arg-type]


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
