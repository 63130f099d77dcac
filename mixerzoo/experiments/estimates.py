"""What a comparison would take, before anything is run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mixerzoo.describe import Description, describe
from mixerzoo.experiments.grid import Cell, Comparison

#: How fast training is beside a plain product of matrices: a guess, for the rest of a step is attention over short
#: sequences, norms, the optimiser and Python.
_SHARE_OF_PEAK = 0.4
#: Seconds of a run in which nothing is trained: imports, the last validation.
_SECONDS_OF_A_RUN = 12.0


@dataclass(frozen=True)
class Estimate:
    """What one run would take.

    Attributes:
        cell: the run; its steps are the recipe's.
        parameters: of its decoder.
        tokens: that it trains on.
        flops: of training, by the decoder's own account.
        memory: bytes, an estimate.
        seconds: a rough estimate.
    """

    cell: Cell
    parameters: int
    tokens: int
    flops: int
    memory: int
    seconds: float


def estimates(comparison: Comparison) -> list[Estimate]:
    """What every run would take; trials of tuning come first, and runs are shown at the first tuned values.

    Args:
        comparison: what is asked for.

    Raises:
        RecipeError: a vocabulary size is open.
    """
    described = {variant: describe(recipe) for variant, recipe in comparison.variants.items()}
    speed = product_flops_per_second()
    cells = [
        Cell.of(variant, recipe, seed, None, "tune")
        for seed in comparison.tuning_seeds
        for variant, recipe in comparison.variants.items()
    ]
    firsts = [
        comparison.variants_of(contender.label, setting)[0]
        for setting in comparison.settings
        for contender in comparison.contenders
    ]
    cells += [
        Cell.of(variant, comparison.variants[variant], seed, None) for seed in comparison.seeds for variant in firsts
    ]
    return [_estimate(cell, described[cell.variant], speed) for cell in cells]


def _estimate(cell: Cell, found: Description, speed: float) -> Estimate:
    flops = 3 * found.costs.flops_per_token * found.training.tokens
    seconds = flops / (speed * _SHARE_OF_PEAK) + _SECONDS_OF_A_RUN
    costs, training = found.costs, found.training
    return Estimate(cell, costs.parameters, training.tokens, flops, training.memory.total, seconds)


def product_flops_per_second(size: int = 512, seconds: float = 0.2) -> float:
    """How fast this machine multiplies matrices, on a GPU where there is one.

    Args:
        size: of the square matrices.
        seconds: how long to measure.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.rand(size, size, device=device)
    b = (a @ a) @ a  # what is set up once is set up now
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        b = a @ b / size
        count += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return 2 * size**3 * count / (time.monotonic() - began)
