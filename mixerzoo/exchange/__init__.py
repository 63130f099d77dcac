"""Checkpoints of other projects made into ours, and ours into theirs."""

from mixerzoo.exchange.exporting import export_checkpoint
from mixerzoo.exchange.importing import ImportReport, import_checkpoint

__all__ = ["ImportReport", "export_checkpoint", "import_checkpoint"]
