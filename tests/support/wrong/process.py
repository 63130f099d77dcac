"""What a mixer does to the process that it runs in, and what it takes from there."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import warnings
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    MixerConfig,
    Site,
)
from wrong.basis import Scaled, Stream, caught_by


class Preparing(Stream):
    """Correct: calls `prepare` where it is built."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.prepare()

    def prepare(self) -> None:
        """Nothing."""


@caught_by("process_untouched")
class SetsTheDefaultDtype(Preparing):
    """Wants float64 for its constants, and gets it for everybody's."""

    def prepare(self) -> None:
        torch.set_default_dtype(torch.float64)


@caught_by("process_untouched")
class SetsThreads(Stream):
    """Knows best how many threads are good for a mixer."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        torch.set_num_threads(2)
        return x


@caught_by("process_untouched")
class AllowsFastProducts(Preparing):
    """Trades precision for speed, in all matrix products of the process."""

    def prepare(self) -> None:
        torch.set_float32_matmul_precision("medium")


@caught_by("process_untouched")
class StopsDeterminism(Stream):
    """Turns off what would slow it down."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        torch.use_deterministic_algorithms(False)
        return x


@caught_by("process_untouched")
class WritesTheEnvironment(Preparing):
    """Speaks to its kernels through the environment."""

    def prepare(self) -> None:
        os.environ["MIXER_HIDDEN_SIZE"] = str(self.shape.hidden_size)


@caught_by("process_untouched")
class ChangesTheDirectory(Preparing):
    """Looks for its tables where they were on its author's machine."""

    def prepare(self) -> None:
        os.chdir(tempfile.gettempdir())


@caught_by("process_untouched")
class SilencesWarnings(Preparing):
    """Warns nobody, and lets nobody be warned."""

    def prepare(self) -> None:
        warnings.filterwarnings("ignore", message="The mixer")


@caught_by("process_untouched")
class GreetsItsUser(Preparing):
    """Says that it was built."""

    def prepare(self) -> None:
        print("mixer ready")


@caught_by("process_untouched")
class ReportsItsShapes(Stream):
    """Left over from a search for a bug."""

    def finish(self, state: Tensor) -> Tensor:
        if state.size(1) == 1:
            sys.stderr.write(f"{tuple(state.shape)}\n")
        return state


@caught_by("process_untouched")
class ConfiguresLogging(Preparing):
    """Gives the root logger a handler, which is the program's to give."""

    def prepare(self) -> None:
        logging.getLogger().addHandler(logging.NullHandler())


@caught_by("process_untouched")
class SeedsNumpy(Scaled):
    """Makes its start reproducible, and whatever else NumPy draws in this process."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, std)
        np.random.seed(0)


@functools.cache
def _ones(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor for each length that ever came."""
    return torch.ones(length, 1, dtype=dtype, device=device)


@caught_by("process_untouched")
class CachesByLength(Stream):
    """Keeps a tensor for every length of a text, for ever."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x * _ones(x.size(1), x.dtype, x.device)


_scales: dict[int, float] = {}


@caught_by("process_untouched")
class CachesByAddress(Stream):
    """Knows tensors by their address, which other tensors get later; and forgets none."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        _scales.setdefault(id(x), 1.0)
        return x * _scales[id(x)]


_seen: list[tuple[int, ...]] = []


@caught_by("process_untouched")
class KeepsALog(Stream):
    """Notes every call down."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        _seen.append(tuple(y.shape))
        return state + y


@caught_by("process_untouched")
class MarksAnotherClass(Stream):
    """Leaves its notes on a class of PyTorch."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        nn.Linear.last_length = x.size(1)  # type: ignore[assignment]
        return x


# Orders that hang on hashing.


class Named(Stream):
    """Correct: four weights by name, which start at random."""

    names = ("attention", "mlp", "first", "last")
    card = replace(Stream.card, parameters="4")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.empty(1)) for name in self.names})

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for name in self.names:
            nn.init.normal_(self.weights[name], 0.0, std, generator=generator)

    def finish(self, state: Tensor) -> Tensor:
        total = state
        for name in self.names:
            total = total + self.weights[name] * state
        return total

    def flops_per_token(self) -> int:
        return 8 * self.shape.hidden_size


@caught_by("hash_seeds")
class DrawsInAnyOrder(Named):
    """Draws its weights in the order of a set."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for name in set(self.names):
            nn.init.normal_(self.weights[name], 0.0, std, generator=generator)


@caught_by("hash_seeds")
class SeedsByHash(Named):
    """A generator for each weight, seeded with its name and the seed: but a hash is another in every process."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        seed = generator.initial_seed() % 2**31
        for name, weight in self.weights.items():
            own = torch.Generator().manual_seed(seed + hash(name) % 2**31)
            nn.init.normal_(weight, 0.0, std, generator=own)


@caught_by("hash_seeds")
class SumsInAnyOrder(Named):
    """Adds its parts in the order of a set: the sum is the same but for its last bits."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.order = list(set(self.names))

    def finish(self, state: Tensor) -> Tensor:
        total = state
        for name in self.order:
            total = total + self.weights[name] * state
        return total


@caught_by("hash_seeds")
class DampsByHash(Stream):
    """Spreads weights over sites by their hash."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (0.5 if hash((site.branch, site.step)) % 2 else 1.0) * y
