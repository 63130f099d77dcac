"""The directory of a training run: what is in it, its checkpoints and logs, and reading its results."""

from mixerzoo.runs.card import run_card
from mixerzoo.runs.checkpoints import (
    OPTIMIZER_FILE,
    SCHEDULER_FILE,
    STATE_FILE,
    complete_checkpoints,
    newest_whole,
    prune,
    publish_checkpoint,
    tidy,
)
from mixerzoo.runs.directory import RunDirectory
from mixerzoo.runs.layout import GENERATION_FILE, RECIPE_FILE, TENSORBOARD
from mixerzoo.runs.log import METRICS_FILE, read_metrics_file
from mixerzoo.runs.records import BATCH, LENGTH
from mixerzoo.runs.results import metrics_frame, read_metrics, read_results, results_frame
from mixerzoo.runs.text_format import check_tokenizer, home_of

__all__ = [
    "BATCH",
    "GENERATION_FILE",
    "LENGTH",
    "METRICS_FILE",
    "OPTIMIZER_FILE",
    "RECIPE_FILE",
    "SCHEDULER_FILE",
    "STATE_FILE",
    "TENSORBOARD",
    "RunDirectory",
    "check_tokenizer",
    "complete_checkpoints",
    "home_of",
    "metrics_frame",
    "newest_whole",
    "prune",
    "publish_checkpoint",
    "read_metrics",
    "read_metrics_file",
    "read_results",
    "results_frame",
    "run_card",
    "tidy",
]
