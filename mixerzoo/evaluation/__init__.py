"""Scoring checkpoints side by side, on texts and on tasks."""

from mixerzoo.evaluation.side_by_side import Settings, compare, read_text
from mixerzoo.evaluation.tasks import load_tasks

__all__ = ["Settings", "compare", "load_tasks", "read_text"]
