"""The process that a run lives in: what of its environment is not read, and its global state."""

from mixerzoo.process.environment import full_precision, launch, notices, recipe_decides
from mixerzoo.process.state import Snapshot

__all__ = ["Snapshot", "full_precision", "launch", "notices", "recipe_decides"]
