"""Mixers that are wrong on purpose, one bug each, and the check of the conformance kit that must catch it."""

from wrong import accounting, decoding, equivalence, method, precision, purity, saving, sequence, training
from wrong.basis import CORRECT, REFERENCES, WRONG

__all__ = [
    "CORRECT",
    "REFERENCES",
    "WRONG",
    "accounting",
    "decoding",
    "equivalence",
    "method",
    "precision",
    "purity",
    "saving",
    "sequence",
    "training",
]
