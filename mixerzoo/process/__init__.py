"""The process that a run lives in: what of its environment is not read, and its global state."""

from mixerzoo.process.environment import full_precision, launch, notices, recipe_decides
from mixerzoo.process.memory import is_out_of_memory
from mixerzoo.process.peaks import KNOWN_GPUS, peak_of
from mixerzoo.process.quiet import errors_alone
from mixerzoo.process.state import Snapshot

__all__ = [
    "KNOWN_GPUS",
    "Snapshot",
    "errors_alone",
    "full_precision",
    "is_out_of_memory",
    "launch",
    "notices",
    "peak_of",
    "recipe_decides",
]
