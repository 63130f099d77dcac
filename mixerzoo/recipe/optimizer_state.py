"""What an optimiser keeps of each parameter."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mixerzoo.model import Decoder
from mixerzoo.recipe.optimizer import AdafactorOptimizer, LionOptimizer, MuonOptimizer
from mixerzoo.recipe.parameter_groups import TrainedParameter, trained_parameters
from mixerzoo.recipe.precision import weights_dtype
from mixerzoo.recipe.recipe import Recipe


class Kept(NamedTuple):
    """One value of an optimiser's state.

    Attributes:
        shape: of the tensor; () is a count or a size.
        dtype: of the tensor; torch.int64 is a whole number of Python's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


def kept_of(recipe: Recipe, trained: TrainedParameter) -> dict[str, Kept]:
    """What the recipe's optimiser keeps of a parameter, by its names.

    Args:
        recipe: the experiment.
        trained: the parameter.
    """
    shape, optimizer = tuple(trained.parameter.shape), recipe.train.optimizer
    dtype = weights_dtype(recipe.train.precision)
    if isinstance(optimizer, AdafactorOptimizer):
        # It computes in float32, whatever the weights are.
        shapes = {"RMS": ()} | ({} if optimizer.beta1 is None else {"exp_avg": shape})
        if len(shape) < 2:
            shapes["exp_avg_sq"] = shape
        else:
            shapes |= {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
        kept = {name: Kept(each, torch.float32) for name, each in shapes.items()}
        return {"step": Kept((), torch.int64), **kept}
    whole = Kept(shape, torch.bfloat16 if optimizer.state_precision == "bf16" else dtype)
    if isinstance(optimizer, LionOptimizer):
        return {"exp_avg": whole}
    if trained.is_matrix and isinstance(optimizer, MuonOptimizer):
        return {"momentum_buffer": whole}
    return {"step": Kept((), torch.float32), "exp_avg": whole, "exp_avg_sq": whole}


def state_bytes(recipe: Recipe, decoder: Decoder) -> int:
    """Bytes of an optimiser's state, but for counts.

    Args:
        recipe: the experiment.
        decoder: its decoder, on any device.
    """
    return sum(
        kept.dtype.itemsize * torch.Size(kept.shape).numel()
        for trained in trained_parameters(recipe, decoder).values()
        for kept in kept_of(recipe, trained).values()
        if kept.shape
    )
