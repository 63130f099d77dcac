"""The one decoder: its configuration, layers, attention and its backends, cache, initial weights."""

from mixerzoo.model.backends import BackendName, attention_with_depth, check_backend
from mixerzoo.model.cache import KVCache
from mixerzoo.model.config import LoopConfig, ModelConfig
from mixerzoo.model.decay import decay_parameter_names, parameter_roles
from mixerzoo.model.decoder import Decoder, initialise_mixer, materialize
from mixerzoo.model.devices import DTYPES, find_device, find_dtype
from mixerzoo.model.latent_attention import LatentAttention, LatentFunctions, attend_to_latents
from mixerzoo.model.layer import Attention, Layer, RMSNorm, Rotary, compute_dtype
from mixerzoo.model.rope import SCALINGS
from mixerzoo.model.stack import Borrowed, KeysAndValues, Stack
from mixerzoo.model.swap_mixer import left_out, remix

__all__ = [
    "DTYPES",
    "SCALINGS",
    "Attention",
    "BackendName",
    "Borrowed",
    "Decoder",
    "KVCache",
    "KeysAndValues",
    "LatentAttention",
    "LatentFunctions",
    "Layer",
    "LoopConfig",
    "ModelConfig",
    "RMSNorm",
    "Rotary",
    "Stack",
    "attend_to_latents",
    "attention_with_depth",
    "check_backend",
    "compute_dtype",
    "decay_parameter_names",
    "find_device",
    "find_dtype",
    "initialise_mixer",
    "left_out",
    "materialize",
    "parameter_roles",
    "remix",
]
