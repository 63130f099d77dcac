"""What a check is run on: a case of plain values, from which decoder, tokens and chunks follow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder, ModelConfig, RMSNorm, materialize

VOCAB_SIZE = 23


@dataclass(frozen=True)
class Case:
    """One example, of values that can be printed and pasted.

    Attributes:
        model: fields of `ModelConfig`, without ``vocab_size``.
        options: options of the mixer.
        batch_size: rows of tokens.
        chunks: lengths of the pieces in which the tokens are decoded; their sum is the number of tokens.
        seed: of weights and tokens.
        pick: a number from which a check takes its positions and rows.
        training: whether the decoder is in training mode; else it is in evaluation mode.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 2
    chunks: tuple[int, ...] = (3, 1, 2)
    seed: int = 0
    pick: int = 0
    training: bool = True

    @property
    def num_tokens(self) -> int:
        """T."""
        return sum(self.chunks)

    def config(self, **changes: Any) -> ModelConfig:
        """The decoder's configuration, with changes."""
        return ModelConfig.model_validate({**self.model, "vocab_size": VOCAB_SIZE, **changes})

    def tokens(self, draw: int = 0) -> Tensor:
        """Tokens int64 [B, T]; other values of ``draw`` give other tokens."""
        generator = torch.Generator().manual_seed(1000 * self.seed + draw)
        return torch.randint(VOCAB_SIZE, (self.batch_size, self.num_tokens), generator=generator)

    def decoder(
        self,
        mixer: type[Mixer],
        *,
        dtype: torch.dtype = torch.float64,
        perturbed: bool = True,
        **changes: Any,
    ) -> Decoder:
        """A decoder with this mixer.

        Args:
            mixer: the mixer under test.
            dtype: of the weights.
            perturbed: move every parameter away from its initial value, so that an identity
                initialisation hides nothing.
            changes: of the model's fields.
        """
        with torch.device("meta"):
            decoder = Decoder(self.config(**changes), mixer, mixer.Config.model_validate(dict(self.options)))
        materialize(decoder, self.seed, dtype=torch.float64)
        if perturbed:
            perturb(decoder, self.seed)
        # A walk through all modules, also where there is nothing to do.
        decoder = decoder if dtype == torch.float64 else decoder.to(dtype)
        return decoder.train(self.training)

    def pieces(self, tokens: Tensor) -> Iterator[Tensor]:
        """Tokens [B, T] cut into the case's chunks."""
        yield from torch.split(tokens, list(self.chunks), dim=1)


def perturb(decoder: Decoder, seed: int, leaves_mixer: bool = False) -> None:
    """Add noise to every parameter; a parameter's noise does not depend on the others.

    Args:
        decoder: changed in place.
        seed: of the noise.
        leaves_mixer: leave the mixer's parameters at their initial values.
    """
    norms = {id(module.weight) for module in decoder.modules() if isinstance(module, RMSNorm)}
    mixing = {id(parameter) for parameter in decoder.mixer.parameters()}
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if leaves_mixer and id(parameter) in mixing:
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise * (0.1 if id(parameter) in norms else 0.25))
