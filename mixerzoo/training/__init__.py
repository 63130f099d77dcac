"""Training a recipe: the run from its first step to its result."""

from mixerzoo.training.interrupts import Terminated
from mixerzoo.training.progress import ProgressReporter
from mixerzoo.training.reporter import Reporter
from mixerzoo.training.run import evaluate_run, train

__all__ = ["ProgressReporter", "Reporter", "Terminated", "evaluate_run", "train"]
