"""What a run records of itself, and how two recipes differ."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from mixerzoo.data import PreparedData, text_record
from mixerzoo.mixer import load_registry, plugin_record
from mixerzoo.recipe import Recipe
from mixerzoo.version import __version__
from mixerzoo.yaml_text import one_line

#: What a run may change to go on for longer. Whether the steps that are done would have been the same, training says.
LENGTH = frozenset({"train.steps", "train.warmup_fraction"})
#: What may change with the number of processes where a step sees as many sequences as before; training says whether.
BATCH = frozenset({"train.accumulation", "train.batch_size"})
#: What changes nothing of a run.
_FREE = frozenset({"train.trackers", "data.workers", "data.loader_workers"})


def provenance(recipe: Recipe, data: PreparedData, command: str, initial: str | None) -> dict[str, Any]:
    """The content of ``run.json``.

    Args:
        recipe: of the run.
        data: its text.
        command: what started it.
        initial: fingerprint of the weights that it starts from, if it starts from a checkpoint.
    """
    return {
        "run_id": secrets.token_hex(16),
        "command": command,
        "data_fingerprint": data.fingerprint,
        **({"data": text} if (text := text_record(recipe.data, data)) else {}),
        **({} if initial is None else {"initial_weights": initial}),
        "mixer_plugin": plugin_record(load_registry(), recipe.mixer.name, recipe.mixer.options),
        "versions": {
            "mixerzoo": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers")},
        },
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }


def differences(ours: Recipe, theirs: Recipe) -> dict[str, str]:
    """Key → what it was and is, for every key in which a recipe differs from that of a run and may not.

    Args:
        ours: as given now.
        theirs: the run's.
    """
    now, before = _flat(ours.model_dump(mode="json")), _flat(theirs.model_dump(mode="json"))
    differing = sorted(key for key in (now.keys() | before.keys()) - _FREE if now.get(key) != before.get(key))
    return {key: f"was {_text(before, key)}, now {_text(now, key)}" for key in differing}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.")
    return flat


def _text(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "absent"
    return one_line(flat[key])
