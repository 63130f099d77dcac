"""Scoring checkpoints side by side, on texts and on tasks."""

from mixerzoo.evaluation.side_by_side import Settings, compare, read_text
from mixerzoo.evaluation.tasks import load_tasks
from mixerzoo.evaluation.validate import evaluate_run

__all__ = ["Settings", "compare", "evaluate_run", "load_tasks", "read_text"]
