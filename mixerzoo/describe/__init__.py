"""What a recipe costs, and which layers read which."""

from mixerzoo.describe.description import BASELINE, Description, describe
from mixerzoo.describe.diagram import diagram

__all__ = ["BASELINE", "Description", "describe", "diagram"]
