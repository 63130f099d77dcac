"""Several devices: caches whose layers are elsewhere until they are wanted, and maps that spread a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin

import zoo
from case import DEPTH
from hf_models import CHOSEN, fresh, shared
from mixerzoo import save_checkpoint
from mixerzoo.errors import MixerError
from zoo import ZooCase, assert_close, some_tokens

# Caches that offload.


class Stream:
    """Stands for one of a GPU."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def offloaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Cache layers offload to where no arithmetic reaches: meta stands for the CPU, and this for the GPU.

    Returns:
        The layers that went.
    """
    went: list[Any] = []

    def offload(layer: Any) -> None:
        went.append(layer)
        layer.kept = layer.keys, layer.values
        layer.keys, layer.values = (x.to("meta") for x in layer.kept)

    def prefetch(layer: Any) -> None:
        if layer.is_initialized and layer.keys.device != layer.device:
            layer.keys, layer.values = layer.kept

    monkeypatch.setattr(CacheLayerMixin, "offload", offload)
    monkeypatch.setattr(CacheLayerMixin, "prefetch", prefetch)
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    return went


@pytest.mark.parametrize("case", CHOSEN, ids=str)
@torch.no_grad()
def test_a_cache_that_offloads_is_the_full_forward(case: ZooCase, offloaded: list[Any]) -> None:
    """Also where the layer after the one that was updated holds nothing, so that none is brought back ahead of time."""
    model, tokens = shared(case), some_tokens(2, 9)
    full = model(tokens).logits
    for cache in (
        DynamicCache(config=model.config, offloading=True),
        StaticCache(config=model.config, max_cache_len=12, offloading=True, offload_only_non_sliding=False),
    ):
        pieces = [model(chunk, past_key_values=cache).logits for chunk in tokens.split([4, 1, 1, 3], dim=1)]
        assert_close(torch.cat(pieces, dim=1), full)
        assert offloaded
        offloaded.clear()


# Device maps.


@pytest.mark.parametrize(
    ("placed", "names"),
    [
        ({"model": "cpu", "lm_head": "disk"}, "'cpu', 'disk'"),
        ({"": "disk"}, "'disk'"),
        ({"model": 0, "lm_head": 1}, "0, 1"),
        ({"model": 0, "lm_head": "cpu"}, "'cpu', 0"),
        ({"model": "cpu", "lm_head": torch.device("cpu")}, r"'cpu', device\(type='cpu'\)"),
    ],
    ids=str,
)
def test_a_map_of_several_devices_is_refused(placed: dict[str, Any], names: str, tmp_path: Path) -> None:
    save_checkpoint(zoo.shared(DEPTH), tmp_path)
    with pytest.raises(MixerError, match=f"^device_map names {names}; a mixer's weights .* stay on one device: load"):
        AutoModelForCausalLM.from_pretrained(tmp_path, device_map=placed)


def test_a_map_that_accelerate_makes_of_several_devices_is_refused(tmp_path: Path) -> None:
    save_checkpoint(zoo.shared(DEPTH), tmp_path / "saved")
    weights = (tmp_path / "saved" / "model.safetensors").stat().st_size
    with pytest.raises(MixerError, match=r"^device_map names 'cpu', 'disk'; "):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "saved", device_map="auto", max_memory={"cpu": weights // 2}, offload_folder=tmp_path
        )


def test_a_model_that_was_spread_is_refused(tmp_path: Path) -> None:
    _, model = fresh(DEPTH)
    accelerate.dispatch_model(model, {"model": "cpu", "lm_head": "disk"}, offload_dir=tmp_path / "whole")
    with pytest.raises(MixerError, match=r"^device_map names 'cpu', 'disk'; "):
        model(some_tokens(1, 3))
    base = fresh(DEPTH)[1].model
    accelerate.dispatch_model(base, {"": "cpu", "norm": "disk"}, offload_dir=tmp_path / "base")
    with pytest.raises(MixerError, match=r"^device_map names 'cpu', 'disk'; "):
        base(some_tokens(1, 3))


@torch.no_grad()
def test_a_map_of_one_device(tmp_path: Path) -> None:
    decoder, tokens = zoo.shared(DEPTH), some_tokens(1, 3)
    save_checkpoint(decoder, tmp_path)
    for placed in ("auto", "cpu", torch.device("cpu"), {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=placed, max_memory={"cpu": "1GB"})
        assert_close(model(tokens).logits, decoder(tokens))
    assert_close(accelerate.dispatch_model(model, {"": "cpu"})(tokens).logits, decoder(tokens))
