"""Checkpoints of other projects made into ours, and ours into theirs."""

from mixerzoo.exchange.exporting import export_checkpoint
from mixerzoo.exchange.importing import ImportReport, import_checkpoint
from mixerzoo.exchange.stock_model import stock_format, stock_model

__all__ = ["ImportReport", "export_checkpoint", "import_checkpoint", "stock_format", "stock_model"]
