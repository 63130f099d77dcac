"""The one decoder: its configuration, layers, attention and its backends, cache, initial weights."""

from mixerzoo.model.attention import Attention
from mixerzoo.model.available import check_backend
from mixerzoo.model.backend_fit import unfit
from mixerzoo.model.backends import BackendName
from mixerzoo.model.cache import KVCache
from mixerzoo.model.config import LoopConfig, ModelConfig
from mixerzoo.model.costs import flops_per_token, forward_flops
from mixerzoo.model.decay import apply_lr_factors, decay_parameter_names, parameter_roles, roles_within
from mixerzoo.model.decoder import Decoder
from mixerzoo.model.devices import DTYPES, default_device, find_device, find_dtype
from mixerzoo.model.initial import initialise_mixer, materialize
from mixerzoo.model.latent_attention import LatentAttention
from mixerzoo.model.layer import Layer
from mixerzoo.model.loss import IGNORED, chunk_tokens, linear_cross_entropy, target_scores
from mixerzoo.model.norm import RMSNorm, compute_dtype
from mixerzoo.model.past import KeysAndValues, Past, Run, Turn
from mixerzoo.model.plain import is_plain
from mixerzoo.model.recompute import EveryNth, Recompute, recomputes
from mixerzoo.model.regions import Compiled
from mixerzoo.model.rope import SCALINGS, Rotary
from mixerzoo.model.sharding import compute_device, drop_gathered, is_sharded
from mixerzoo.model.stack import Stack
from mixerzoo.model.swap_mixer import left_out, remix
from mixerzoo.model.tail import earlier

__all__ = [
    "DTYPES",
    "IGNORED",
    "SCALINGS",
    "Attention",
    "BackendName",
    "Compiled",
    "Decoder",
    "EveryNth",
    "KVCache",
    "KeysAndValues",
    "LatentAttention",
    "Layer",
    "LoopConfig",
    "ModelConfig",
    "Past",
    "RMSNorm",
    "Recompute",
    "Rotary",
    "Run",
    "Stack",
    "Turn",
    "apply_lr_factors",
    "check_backend",
    "chunk_tokens",
    "compute_device",
    "compute_dtype",
    "decay_parameter_names",
    "default_device",
    "drop_gathered",
    "earlier",
    "find_device",
    "find_dtype",
    "flops_per_token",
    "forward_flops",
    "initialise_mixer",
    "is_plain",
    "is_sharded",
    "left_out",
    "linear_cross_entropy",
    "materialize",
    "parameter_roles",
    "recomputes",
    "remix",
    "roles_within",
    "target_scores",
    "unfit",
]
