"""Initial values of several seeds, and what can be said of how they are drawn."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from mixerzoo.model import Decoder, initialise_mixer
from mixerzoo.testing.check import assert_close

#: Seeds that are compared.
SEEDS = 16
#: Standard errors that what is drawn as it should be lies off by chance once in more than 1e9 times.
_CERTAIN = 7.0


@torch.no_grad()
def starting_values(decoder: Decoder, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Initial values of some of a mixer's parameters, float64 [`SEEDS`, …].

    Args:
        decoder: its mixer is initialised anew.
        names: of parameters, within the mixer.
        seed: the first.
    """
    starts: dict[str, list[Tensor]] = {name: [] for name in names}
    for number in range(SEEDS if starts else 0):
        initialise_mixer(decoder, seed + number)
        parameters = dict(decoder.mixer.named_parameters())
        for name, values in starts.items():
            values.append(parameters[name].to(torch.float64, copy=True))
    return {name: torch.stack(values) for name, values in starts.items()}


def standardised(values: Tensor, mean: float | Tensor, std: float | Tensor, name: str) -> Tensor:
    """Of initial values those that are drawn, less their mean and over their standard deviation, in one row.

    Args:
        values: of one parameter, from several seeds [seeds, …].
        mean: of each entry, for all or for each.
        std: likewise; where it is 0 the mean must not be departed from.
        name: of the parameter, in words.
    """
    mean, std = (torch.as_tensor(each, dtype=torch.float64).expand_as(values) for each in (mean, std))
    drawn = std > 0
    assert_close(values[~drawn], mean[~drawn], f"the {name}, where it is not drawn,", tolerance=1e-6)
    return (values[drawn] - mean[drawn]) / std[drawn]


def assert_standard(values: Tensor, name: str) -> None:
    """Demand that values have mean 0 and standard deviation 1, as far as so many can tell.

    Args:
        values: independent, from several seeds.
        name: what they are, in words.
    """
    if not values.numel():
        return
    off, spread = float(values.mean()), float(values.square().mean().sqrt())
    error = values.numel() ** -0.5
    # That of a standard deviation grows with the fourth moment, which is 3 of normal entries.
    tails = max(3.0, float(values.pow(4).mean()) / max(spread, 1e-9) ** 4) - 1
    assert abs(off) <= _CERTAIN * error, (
        f"the {name} lies {off:.3g} standard deviations off the reference's mean, over {SEEDS} seeds"
    )
    assert abs(spread - 1) <= _CERTAIN * error * tails**0.5 / 2, (
        f"the {name} spreads {spread:.3g} times as far as the reference says, over {SEEDS} seeds"
    )
