"""What the author of a mixer reads, how mixers are found, and what a plugin may not do meanwhile."""

from mixerzoo.mixer.base import API_VERSION, AttentionMixer, AttentionState, Mixer
from mixerzoo.mixer.calls import AttentionCall, AttentionInputs, Context, DepthEntries, MixingWeights, State
from mixerzoo.mixer.card import MixerCard, MixerConfig, Neutral, ParameterRole, ReferenceReading
from mixerzoo.mixer.choice import MixerChoice, check_choice
from mixerzoo.mixer.connection import Connection, ConnectionMixer
from mixerzoo.mixer.followed import Followed, follow
from mixerzoo.mixer.hookspecs import hookimpl
from mixerzoo.mixer.liveness import held_sources
from mixerzoo.mixer.plan import HOOKS, Hook, Plan, Tail
from mixerzoo.mixer.plugin_guard import blamed, guarded, output_to_stderr
from mixerzoo.mixer.recorded import plugin_record, recorded_entry
from mixerzoo.mixer.registry import MixerEntry, Registry, load_registry
from mixerzoo.mixer.shape import Branch, DecoderShape, Site
from mixerzoo.mixer.walk import Made, Walk, of_zeros

__all__ = [
    "API_VERSION",
    "HOOKS",
    "AttentionCall",
    "AttentionInputs",
    "AttentionMixer",
    "AttentionState",
    "Branch",
    "Connection",
    "ConnectionMixer",
    "Context",
    "DecoderShape",
    "DepthEntries",
    "Followed",
    "Hook",
    "Made",
    "Mixer",
    "MixerCard",
    "MixerChoice",
    "MixerConfig",
    "MixerEntry",
    "MixingWeights",
    "Neutral",
    "ParameterRole",
    "Plan",
    "ReferenceReading",
    "Registry",
    "Site",
    "State",
    "Tail",
    "Walk",
    "blamed",
    "check_choice",
    "follow",
    "guarded",
    "held_sources",
    "hookimpl",
    "load_registry",
    "of_zeros",
    "output_to_stderr",
    "plugin_record",
    "recorded_entry",
]
