"""What a recipe costs, and which layers read which."""

from mixerzoo.describe.description import BASELINE, Description, describe

__all__ = ["BASELINE", "Description", "describe"]
