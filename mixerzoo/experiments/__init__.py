"""What trained decoders show: which mixer is worth its cost, and what a mixer learned."""

from mixerzoo.experiments.comparing import compare, default_threads
from mixerzoo.experiments.devices import find_devices
from mixerzoo.experiments.estimates import Estimate, estimates
from mixerzoo.experiments.figures import COLUMNS, cell, setting_in_words, summary
from mixerzoo.experiments.grid import CompareConfig, Comparison
from mixerzoo.experiments.inspect import Inspection, SiteWeights, inspect_checkpoint
from mixerzoo.experiments.inspect_page import inspection_page
from mixerzoo.experiments.page import report_page
from mixerzoo.experiments.progress import Board
from mixerzoo.experiments.reading import MOST_CELLS, Flags, read_comparison

__all__ = [
    "COLUMNS",
    "MOST_CELLS",
    "Board",
    "CompareConfig",
    "Comparison",
    "Estimate",
    "Flags",
    "Inspection",
    "SiteWeights",
    "cell",
    "compare",
    "default_threads",
    "estimates",
    "find_devices",
    "inspect_checkpoint",
    "inspection_page",
    "read_comparison",
    "report_page",
    "setting_in_words",
    "summary",
]
