"""What each process runs: ``compare KIND``, ``train DIRECTORY STOP OVERRIDE…``, ``quick DIRECTORY``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import zoo
from mixerzoo.cli.common import report
from mixerzoo.errors import MixerzooError
from mixerzoo.recipe.parallel import FsdpConfig
from mixerzoo.training.parallel import shard, whole
from mixerzoo.training.run import Reporter, train
from mixerzoo.training.trainer import NextTokenLoss
from runs import tiny_recipe
from zoo import ZooCase, some_tokens

#: Of two layers between a prelude and a coda, and one weight for embedding and head.
QUICK = tuple(
    ZooCase(mixer, {}, {**zoo.LOOPED, "tie_embeddings": True}) for mixer in ("residual", "depth_attention", "attn_res")
)


Kind = Literal["ddp", "fsdp", "fsdp without resharding"]


class At(Reporter):
    """Sends a process a signal at a step, as schedulers do, and remembers what it is told."""

    def __init__(self, step: int = 0, number: int = signal.SIGTERM, process: int | None = None) -> None:
        self._step, self._number, self._process = step, number, process or os.getpid()
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        if step == self._step:
            os.kill(self._process, self._number)


def steps(case: ZooCase, kind: Kind | None) -> list[float]:
    """Losses and gradient norms of three steps, of all processes together, or of this one alone."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if kind else (0, 1)
    decoder = zoo.make(case)
    model: nn.Module = NextTokenLoss(decoder)
    if kind == "ddp":
        # As in training, where a parameter that no gradient reaches is an error of the next step.
        model = DistributedDataParallel(model, find_unused_parameters=False)
    elif kind:
        shard(decoder, FsdpConfig(reshard_after_forward=kind == "fsdp"), torch.device("cpu"))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, fused=True)
    found = []
    for seed in range(3):
        tokens = some_tokens(4, 9, seed=seed)[rank::world]
        loss = model(tokens[:, :-1], tokens[:, 1:])["loss"]
        loss.backward()
        norm = whole(torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        found += [float(_mean(loss.detach(), world)), float(norm)]
    return found


def _mean(loss: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(loss)
    return loss / world


def compare(cases: Iterable[ZooCase], kind: Kind) -> None:
    """In each of several processes."""
    dist.init_process_group("gloo")
    for case in cases:
        ours, theirs = steps(case, kind), steps(case, None)
        farthest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
        assert farthest < 1e-9, f"{kind} {case}: {farthest}"


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "compare":
        compare(zoo.REGISTERED_CASES, *given)
    elif what == "quick":
        compare(QUICK, "fsdp")
        print("compared", flush=True)
        numbers: list[int] = [0, 0]
        dist.all_gather_object(numbers, os.getpid())
        kills = At(6, signal.SIGKILL, numbers[1])
        try:
            train(tiny_recipe("train.parallel=fsdp", "train.batch_size=2"), given[0], reporter=kills)
        except MixerzooError as error:
            report(error)
            sys.exit(2)
    else:
        directory, stop, *overrides = given
        Path(directory).mkdir(exist_ok=True)
        train(tiny_recipe(*overrides), directory, resume=True, reporter=At(int(stop)))
