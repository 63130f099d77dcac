"""Loss against what was spent, over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixerzoo.runs import read_metrics

#: Points of a curve in a report; a figure has no more columns.
_MOST_POINTS = 200


def curve(runs: Sequence[Path], *, tokens_per_step: int, flops_per_token: int | None) -> list[dict[str, Any]]:
    """The training loss of one mixer after each logged step that all of its runs have.

    Args:
        runs: the directories of finished runs that differ in the seed alone.
        tokens_per_step: that one optimiser step sees.
        flops_per_token: of training; None: not known.

    Returns:
        For each step ``step``, ``tokens``, ``flops``, ``seconds`` of training (the mean over runs; null where a run
        did not measure it), and ``loss``, ``low``, ``high``: mean, least and largest over runs.
    """
    lines = [{line["step"]: line for line in read_metrics(run) if "loss" in line} for run in runs]
    steps = sorted(set.intersection(*(set(each) for each in lines)))
    every = max(1, -(-len(steps) // _MOST_POINTS))
    points = []
    for step in [*steps[every - 1 :: every], *([steps[-1]] if steps and len(steps) % every else [])]:
        at = [each[step] for each in lines]
        losses = [line["loss"] for line in at]
        if None in losses:
            continue  # not finite
        tokens = step * tokens_per_step
        seconds = [_seconds(line, tokens) for line in at]
        known = [each for each in seconds if each is not None]
        points.append(
            {
                "step": step,
                "tokens": tokens,
                "flops": None if flops_per_token is None else tokens * flops_per_token,
                "seconds": math.fsum(known) / len(known) if len(known) == len(seconds) else None,
                "loss": math.fsum(losses) / len(losses),
                "low": min(losses),
                "high": max(losses),
            }
        )
    return points


def _seconds(line: dict[str, Any], tokens: int) -> float | None:
    """Of training until then: as recorded, or by the speed that was measured up to there."""
    if line.get("train_seconds") is not None:
        return float(line["train_seconds"])
    speed = line.get("tokens_per_second")
    return tokens / speed if speed else None
