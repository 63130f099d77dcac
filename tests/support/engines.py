"""Run by torchrun: Hugging Face models trained by other engines on several ranks, against one process.

The engines are accelerate, which copies the model, and PyTorch's own sharding by the layer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

import mixerzoo.hf  # noqa: F401  makes the model known

ROWS = (5 * torch.arange(48).reshape(4, 12)) % 19


def trained(model: nn.Module, rows: torch.Tensor, accelerator: Accelerator | None = None) -> dict[str, torch.Tensor]:
    """The weights after three steps of plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
        assert isinstance(model, DistributedDataParallel)
    for _ in range(3):
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward() if accelerator is None else accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    plain = model if accelerator is None else accelerator.unwrap_model(model)
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in plain.named_parameters()}


def main(folders: list[Path]) -> None:
    accelerator = Accelerator(cpu=True)
    own = ROWS[accelerator.process_index :: accelerator.num_processes]
    for folder in folders:
        one, copied, sharded = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for _ in range(3))
        for layer in sharded.model.layers:
            fully_shard(layer)
        fully_shard(sharded)
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        expected = trained(one, ROWS)
        for found in (trained(copied, own, accelerator), trained(sharded, own)):
            assert found.keys() == expected.keys()
            for name, weight in found.items():
                torch.testing.assert_close(weight, expected[name], rtol=1e-9, atol=1e-10, msg=f"{name}: {{}}".format)
        if accelerator.is_main_process:
            print("equal", folder.name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
