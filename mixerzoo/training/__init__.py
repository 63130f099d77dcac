"""Training a recipe: the run from its first step to its result."""

from mixerzoo.training.checks import check_apart, check_trainable
from mixerzoo.training.interrupts import Terminated
from mixerzoo.training.processes import take_device
from mixerzoo.training.progress import ProgressReporter
from mixerzoo.training.reporter import Reporter
from mixerzoo.training.run import memory_in_words, train, yardsticks_or_none
from mixerzoo.training.run_callback import score_validation

__all__ = [
    "ProgressReporter",
    "Reporter",
    "Terminated",
    "check_apart",
    "check_trainable",
    "memory_in_words",
    "score_validation",
    "take_device",
    "train",
    "yardsticks_or_none",
]
