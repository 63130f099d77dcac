"""What a comparison would take, before anything is run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mixerzoo.describe import Description, describe
from mixerzoo.errors import RecipeError, RunError
from mixerzoo.experiments.devices import kind_of
from mixerzoo.experiments.grid import Cell, Comparison, Variant
from mixerzoo.model import default_device
from mixerzoo.recipe import FORWARDS_PER_STEP, Recipe, autocast_dtype, build, check_size, weights_dtype
from mixerzoo.training import memory_in_words

#: Seconds of a run in which nothing is trained or scored: imports, checkpoints, the report of progress.
_SECONDS_OF_A_RUN = 8.0
#: Seconds that measuring one mixer takes, where it can be so short, and after which no more of them are measured.
_SECONDS_OF_ONE, _SECONDS_OF_ALL = 1.0, 20.0


@dataclass(frozen=True)
class Estimate:
    """What one run would take.

    Attributes:
        cell: the run; its steps are the recipe's.
        parameters: of its decoder.
        tokens: that it trains on.
        flops: of training, by the decoder's own account.
        memory: bytes, an estimate.
        seconds: a rough estimate; None where the decoder could not be tried here.
        problem: why it could not.
    """

    cell: Cell
    parameters: int
    tokens: int
    flops: int
    memory: int
    seconds: float | None
    problem: str | None = None


def estimates(comparison: Comparison, threads: int, device: str | None = None) -> list[Estimate]:
    """What every run would take; trials of tuning come first, and runs are shown at the first tuned values.

    Each mixer takes a few steps, to see how fast it is.

    Args:
        comparison: what is asked for.
        threads: of each run.
        device: of the runs; default: what `mixerzoo train` takes.

    Raises:
        RecipeError: a vocabulary size is open.
    """
    described = {variant: describe(recipe) for variant, recipe in comparison.variants.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        speeds = _speeds(comparison, described, device or default_device())
    finally:
        torch.set_num_threads(before)
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
    return [_estimate(cell, described[cell.variant], speeds[cell.variant.label]) for cell in cells]


def _estimate(cell: Cell, found: Description, speed: float | str) -> Estimate:
    costs, training = found.costs, found.training
    flops = FORWARDS_PER_STEP * costs.flops_per_token * training.tokens
    scored = costs.flops_per_token * _validation_tokens(cell.recipe, training.text_tokens)
    known = Estimate(cell, costs.parameters, training.tokens, flops, training.memory.total, None)
    if isinstance(speed, str):
        return replace(known, problem=speed)
    return replace(known, seconds=(flops + scored) / speed + _SECONDS_OF_A_RUN)


def _validation_tokens(recipe: Recipe, text_tokens: int | None) -> float:
    """That all validations of a run score; of a text that was never prepared, those of the final one are not known."""
    evaluation, fraction = recipe.eval, recipe.data.validation_fraction
    whole = 0.0 if text_tokens is None else text_tokens * fraction / (1 - fraction)
    once = whole
    if evaluation.max_sequences is not None:
        part = float(evaluation.max_sequences * recipe.data.sequence_length)
        once = part if text_tokens is None else min(part, whole)
    times = 0 if evaluation.interval is None else (recipe.train.steps - 1) // evaluation.interval
    return whole + times * once


def _speeds(comparison: Comparison, described: Mapping[Variant, Description], device: str) -> dict[str, float | str]:
    """Label → operations a second in training, in the first setting, or why there are none; once it takes too long, the
    least so far."""
    began, speeds = time.monotonic(), dict[str, float | str]()
    for contender in comparison.contenders:
        measured = [speed for speed in speeds.values() if not isinstance(speed, str)]
        if measured and time.monotonic() - began > _SECONDS_OF_ALL:
            speeds[contender.label] = min(measured)
            continue
        variant = comparison.variants_of(contender.label, comparison.settings[0])[0]
        flops = FORWARDS_PER_STEP * described[variant].costs.flops_per_token
        try:
            check_size(comparison.variants[variant])
            with memory_in_words():
                speeds[contender.label] = flops * tokens_per_second(comparison.variants[variant], flops, device)
        except (RecipeError, RunError) as error:
            speeds[contender.label] = str(error).partition("\n")[0]
    return speeds


def tokens_per_second(recipe: Recipe, flops_per_token: float, device: str) -> float:
    """How fast a recipe trains here: forwards and backwards of so few sequences that it takes about a second.

    Args:
        recipe: with the vocabulary size of its model or its tokenizer.
        flops_per_token: of training, to choose how many sequences.
        device: ``cpu``, ``cuda:1``.
    """
    size, dtype = recipe.data.vocab_size, weights_dtype(recipe.train.precision)
    decoder = build(
        (recipe if size is None else recipe.with_vocab_size(size)).from_scratch(), device=device, dtype=dtype
    )
    decoder.model.activation_checkpointing = recipe.train.activation_checkpointing
    length = recipe.data.sequence_length
    fit = product_flops_per_second(device) * _SECONDS_OF_ONE / (2 * flops_per_token * length)
    tokens = torch.randint(
        decoder.shape.vocab_size, (max(1, min(recipe.train.batch_size, int(fit))), length), device=device
    )

    autocast = autocast_dtype(recipe.train.precision)

    def step() -> None:
        with torch.autocast(kind_of(device), autocast, enabled=autocast is not None):
            loss = decoder.loss(tokens, tokens)
        loss.backward()
        decoder.zero_grad()
        _wait_for(device)

    step()  # what is set up once is set up now
    began, count = time.monotonic(), 0
    while not count or time.monotonic() - began < _SECONDS_OF_ONE:
        step()
        count += 1
    return count * tokens.numel() / (time.monotonic() - began)


def product_flops_per_second(device: str, size: int = 512, seconds: float = 0.1) -> float:
    """How fast this machine multiplies matrices.

    Args:
        device: ``cpu``, ``cuda:1``.
        size: of the square matrices.
        seconds: how long to measure.
    """
    a = torch.rand(size, size, device=device)
    b = (a @ a) @ a
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        b = a @ b / size
        count += 1
        _wait_for(device)
    return 2 * size**3 * count / (time.monotonic() - began)


def _wait_for(device: str) -> None:
    if kind_of(device) == "cuda":
        torch.cuda.synchronize(device)
