"""The model card of a run."""

from __future__ import annotations

from typing import Any

from mixerzoo.checkpoints import model_card
from mixerzoo.recipe import Recipe
from mixerzoo.version import __version__


def run_card(recipe: Recipe, result: dict[str, Any]) -> str:
    """The README.md of a run directory."""
    start = "" if recipe.model.init_from is None else f", from the weights of `{recipe.model.init_from}`"
    xz = f"xz of the first {result['xz_bytes']:,} bytes" if "xz_bytes" in result else "xz"
    figures = {
        "bits per byte": (result["bits_per_byte"], ".4f"),
        "perplexity per token": (result["perplexity"], ".3f"),
        "byte-bigram model, bits per byte": (result["bigram_bits_per_byte"], ".4f"),
        f"{xz}, bits per byte": (result["xz_bits_per_byte"], ".4f"),
        "KV cache, bytes per token": (result["kv_bytes_per_token"], ","),
        "in flight, bytes per token": (result["in_flight_bytes_per_token"], ","),
    }
    rows = "\n".join(f"| {name} | {value:{form}} |" for name, (value, form) in figures.items() if value is not None)
    sources = recipe.data.all_sources
    text = ", ".join(dict.fromkeys(f"`{source.name}`" for source in sources))
    word = "source" if len(sources) == 1 else "sources"
    origin = f"""Trained by mixerzoo {__version__} for {recipe.train.steps} steps on the {word}
{text}{start}. The recipe is in `recipe.yaml`, the versions and the
data's fingerprint in `run.json`.

| validation | |
|---|---|
{rows}"""
    return model_card(recipe.mixer.name, result["parameters"], origin=origin)
