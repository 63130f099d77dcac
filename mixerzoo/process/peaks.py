"""How fast GPUs could be, by their names."""

from __future__ import annotations

import re

#: In a GPU's name → its peak in 10¹² operations a second, dense: of bf16 with sums in float32, and of float32 outside
#: the tensor cores. From the makers' data sheets; the first that occurs in the name counts.
_PEAKS = {
    "B200": (2250.0, 75.0),
    "H200 NVL": (835.5, 60.0),
    "H200": (989.4, 66.9),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
#: A part of a GPU, or one of the same name that is slower.
_LESSER = re.compile(r"\bMIG\b|\bLaptop\b|\bD$")

#: What `peak_of` knows.
KNOWN_GPUS = tuple(_PEAKS)


def peak_of(name: str, precision: str) -> float | None:
    """Operations that a GPU could do in a second; None where its name does not say.

    Args:
        name: as its driver gives it.
        precision: ``train.precision`` of a recipe. What multiplies in 16 bits has the peak of bf16, and float8 that of
            what surrounds it.
    """
    if _LESSER.search(name):
        return None
    for part, (bf16, float32) in _PEAKS.items():
        if re.search(rf"(?<![A-Za-z0-9]){part}(?![A-Za-z0-9])", name):
            return 1e12 * (float32 if precision == "float32" else bf16)
    return None
