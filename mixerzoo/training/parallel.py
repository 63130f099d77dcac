"""Weights that several devices share out among them: PyTorch's FSDP2, a group for each layer.

accelerate, which has FSDP2 as well, makes DDP of it on a CPU without a word; so the decoder is sharded before Trainer
sees it, and accelerate is kept from wrapping it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import Trainer

from mixerzoo.errors import RunError
from mixerzoo.model import Decoder, is_sharded
from mixerzoo.process import launch
from mixerzoo.recipe import FsdpConfig, Recipe
from mixerzoo.training.processes import launched, meeting

#: After which an exchange is given up, as in Trainer.
_TIMEOUT = timedelta(minutes=30)
#: What of a decoder reads its weights, beside ``forward``.
_FORWARDS = ("loss", "token_losses")


def check_parallel(recipe: Recipe) -> None:
    """Refuse what this machine cannot do of a recipe's sharding.

    Raises:
        RunError: weights are to leave a GPU that is not there.
    """
    options = recipe.train.fsdp
    if options is not None and options.cpu_offload and not torch.cuda.is_available():
        raise RunError(
            "train.fsdp.cpu_offload keeps weights in the machine's memory and off the GPU, and there is no GPU here; "
            "set it to false"
        )


@contextmanager
def process_group(recipe: Recipe) -> Iterator[None]:
    """A block in which there is the group of a run's processes, also of one alone that shards; and PyTorch is quiet.

    Trainer would make it without a word of which start of torchrun's this is (see `meeting`). The process has taken its
    GPU already (see `take_device`).

    Args:
        recipe: of the run.
    """
    sharded = recipe.train.parallel == "fsdp"
    if not (sharded or launched()):
        yield
        return
    alone = not (launched() or dist.is_initialized())
    backend = "gloo"
    if torch.cuda.is_available():
        # Of shares, what leaves the GPU and what is written while it computes goes over the CPU.
        backend = "cpu:gloo,cuda:nccl" if sharded else "nccl"
    if alone:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    elif not dist.is_initialized():
        here = launch()
        dist.init_process_group(backend, store=meeting(), rank=here.rank, world_size=here.world_size, timeout=_TIMEOUT)
    try:
        with warnings.catch_warnings():
            # State passes through layers as it is, and nothing writes into it.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
            yield
    finally:
        if alone:
            dist.destroy_process_group()


def shard(decoder: Decoder, options: FsdpConfig, device: torch.device) -> None:
    """Leave each process its share of the weights, on its device.

    A layer's weights are gathered for its steps. All others (embedding, head, final norm, mixer) stay gathered from the
    beginning of a forward to the end of its backward: a mixer is read between and within the layers.

    Args:
        decoder: with the same weights in every process; changed in place.
        options: of the recipe.
        device: of this process.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    offload = CPUOffloadPolicy() if options.cpu_offload else OffloadPolicy()
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    # State keeps its precision, as under autocast, whose products these are.
    short = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in decoder.model.layers:
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=options.reshard_after_forward,
            mp_policy=short if options.mixed_precision else plain,
            offload_policy=offload,
        )
    fully_shard(decoder, mesh=mesh, mp_policy=plain, offload_policy=offload)
    for method in _FORWARDS:
        register_fsdp_forward_method(decoder, method)


def own_share(parameter: Tensor) -> Tensor:
    """What this process has of a parameter: all of it, where nothing is sharded."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole(value: Any) -> Any:
    """A norm over all shares, where it is a part of one; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_weights(decoder: Decoder, *, keep: bool) -> dict[str, Tensor]:
    """All weights, gathered one at a time; every process must call this.

    Args:
        decoder: sharded.
        keep: whether this process gets them, on the CPU; others get nothing.
    """
    found = {}
    for name, tensor in decoder.state_dict().items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = whole(full.to(full.device_mesh.device_type))
        if keep:
            found[name] = full.cpu()
    return found


def _decoder(model: nn.Module) -> nn.Module:
    decoder = model.decoder
    assert isinstance(decoder, nn.Module)
    return decoder


class ParallelTrainer(Trainer):
    """Trainer over a model whose decoder may be sharded already, which accelerate is to leave as it is."""

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not is_sharded(_decoder(model)):
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if is_sharded(_decoder(model)):
            # Autocast, and no DDP around it; what is marked so is not prepared again.
            model = self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            model._is_accelerate_prepared = True  # type: ignore[assignment]
        return super()._wrap_model(model, training, dataloader)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return whole(super()._get_grad_norm(model, grad_norm))  # type: ignore[no-untyped-call]

    def agreed(self, value: str) -> str:
        """The first process's value, in every process.

        Args:
            value: this process's.
        """
        shared = [value]
        if self.args.world_size > 1:
            dist.broadcast_object_list(shared)
        return shared[0]


def first_of_all(found: str | None) -> str | None:
    """What the first process that found something found; every process must call this.

    Args:
        found: by this one.
    """
    everywhere: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return next((each for each in everywhere if each is not None), None)
