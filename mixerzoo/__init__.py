"""mixerzoo: a modular zoo of cross-layer mixers for decoder language models.

Everything that a user or the author of a mixer needs is exported here. Names are resolved on first use,
so that `import mixerzoo` costs nothing.
"""

from __future__ import annotations

import importlib

from mixerzoo.version import __version__ as __version__

# Not taken from `typing`: nothing but what the interpreter has loaded itself may be imported here, for under
# ``python -m mixerzoo`` the working directory is still first on the path.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mixerzoo import ops
    from mixerzoo.checkpoints import load_checkpoint, save_checkpoint
    from mixerzoo.data import TextFormat, TextTokenizer
    from mixerzoo.errors import (
        BackendError,
        CacheError,
        CheckpointError,
        DataError,
        MixerError,
        MixerzooError,
        PluginError,
        RecipeError,
        RunError,
    )
    from mixerzoo.evaluation import evaluate_run
    from mixerzoo.exchange import export_checkpoint, import_checkpoint
    from mixerzoo.inference import generate, stream
    from mixerzoo.mixer import (
        API_VERSION,
        AttentionCall,
        AttentionInputs,
        AttentionMixer,
        AttentionState,
        Connection,
        ConnectionMixer,
        Context,
        DecoderShape,
        DepthEntries,
        Hook,
        Mixer,
        MixerCard,
        MixerChoice,
        MixerConfig,
        MixingWeights,
        Neutral,
        ParameterRole,
        Plan,
        ReferenceReading,
        Site,
        State,
        Tail,
        held_sources,
        hookimpl,
        load_registry,
    )
    from mixerzoo.model import Decoder, KVCache, LoopConfig, ModelConfig, decay_parameter_names
    from mixerzoo.recipe import Recipe, build, load_recipe
    from mixerzoo.runs import metrics_frame, read_metrics, read_results, results_frame
    from mixerzoo.training import ProgressReporter, Reporter, train

_HOME = {
    "checkpoints": (
        "load_checkpoint",
        "save_checkpoint",
    ),
    "data": (
        "TextFormat",
        "TextTokenizer",
    ),
    "errors": (
        "BackendError",
        "CacheError",
        "CheckpointError",
        "DataError",
        "MixerError",
        "MixerzooError",
        "PluginError",
        "RecipeError",
        "RunError",
    ),
    "evaluation": ("evaluate_run",),
    "exchange": (
        "export_checkpoint",
        "import_checkpoint",
    ),
    "inference": (
        "generate",
        "stream",
    ),
    "mixer": (
        "API_VERSION",
        "AttentionCall",
        "AttentionInputs",
        "AttentionMixer",
        "AttentionState",
        "Connection",
        "ConnectionMixer",
        "Context",
        "DecoderShape",
        "DepthEntries",
        "Hook",
        "Mixer",
        "MixerCard",
        "MixerChoice",
        "MixerConfig",
        "MixingWeights",
        "Neutral",
        "ParameterRole",
        "Plan",
        "ReferenceReading",
        "Site",
        "State",
        "Tail",
        "held_sources",
        "hookimpl",
        "load_registry",
    ),
    "model": (
        "Decoder",
        "KVCache",
        "LoopConfig",
        "ModelConfig",
        "decay_parameter_names",
    ),
    "recipe": (
        "Recipe",
        "build",
        "load_recipe",
    ),
    "runs": (
        "metrics_frame",
        "read_metrics",
        "read_results",
        "results_frame",
    ),
    "training": (
        "ProgressReporter",
        "Reporter",
        "train",
    ),
}
#: Exported whole.
_MODULES = ("ops",)
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

# To build, run, load.
__all__ = [
    "Decoder",
    "KVCache",
    "LoopConfig",
    "ModelConfig",
    "ProgressReporter",
    "Recipe",
    "Reporter",
    "TextFormat",
    "TextTokenizer",
    "build",
    "decay_parameter_names",
    "evaluate_run",
    "export_checkpoint",
    "generate",
    "import_checkpoint",
    "load_checkpoint",
    "load_recipe",
    "load_registry",
    "metrics_frame",
    "read_metrics",
    "read_results",
    "results_frame",
    "save_checkpoint",
    "stream",
    "train",
]
# What can go wrong.
__all__ += [
    "BackendError",
    "CacheError",
    "CheckpointError",
    "DataError",
    "MixerError",
    "MixerzooError",
    "PluginError",
    "RecipeError",
    "RunError",
]
# To write a mixer.
__all__ += [
    "API_VERSION",
    "AttentionCall",
    "AttentionInputs",
    "AttentionMixer",
    "AttentionState",
    "Connection",
    "ConnectionMixer",
    "Context",
    "DecoderShape",
    "DepthEntries",
    "Hook",
    "Mixer",
    "MixerCard",
    "MixerChoice",
    "MixerConfig",
    "MixingWeights",
    "Neutral",
    "ParameterRole",
    "Plan",
    "ReferenceReading",
    "Site",
    "State",
    "Tail",
    "held_sources",
    "hookimpl",
    "ops",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mixerzoo.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'mixerzoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mixerzoo.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
