"""What the author of a mixer reads, how mixers are found, and what a plugin may not do meanwhile."""

from mixerzoo.mixer.base import (
    API_VERSION,
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    Branch,
    Context,
    DecoderShape,
    DepthEntries,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    ParameterRole,
    Plan,
    ReferenceReading,
    Site,
    State,
)
from mixerzoo.mixer.choice import MixerChoice, check_mixer
from mixerzoo.mixer.hookspecs import hookimpl
from mixerzoo.mixer.plugin_guard import guarded, output_to_stderr
from mixerzoo.mixer.registry import MixerEntry, Registry, load_registry, one_line

__all__ = [
    "API_VERSION",
    "AttentionInputs",
    "AttentionMixer",
    "AttentionState",
    "Branch",
    "Context",
    "DecoderShape",
    "DepthEntries",
    "Mixer",
    "MixerCard",
    "MixerChoice",
    "MixerConfig",
    "MixerEntry",
    "Neutral",
    "ParameterRole",
    "Plan",
    "ReferenceReading",
    "Registry",
    "Site",
    "State",
    "check_mixer",
    "guarded",
    "hookimpl",
    "load_registry",
    "one_line",
    "output_to_stderr",
]
