"""Recipes of the paper's sizes, and of a small one."""

from __future__ import annotations

import json
from typing import Any

from mixerzoo import Decoder, Recipe, build
from mixerzoo.recipe.read import parse_recipe
from mixerzoo.recipe.yaml_source import YamlSource

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
