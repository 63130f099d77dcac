"""Mixers that are wrong on purpose, one bug each, and the check of the conformance kit that must catch it."""

from wrong import (
    accounting,
    declarations,
    decoding,
    devices,
    equivalence,
    method,
    modes,
    numbers,
    precision,
    process,
    purity,
    saving,
    sequence,
    sizes,
    training,
)
from wrong.basis import CORRECT, REFERENCES, WRONG

__all__ = [
    "CORRECT",
    "REFERENCES",
    "WRONG",
    "accounting",
    "declarations",
    "decoding",
    "devices",
    "equivalence",
    "method",
    "modes",
    "numbers",
    "precision",
    "process",
    "purity",
    "saving",
    "sequence",
    "sizes",
    "training",
]
