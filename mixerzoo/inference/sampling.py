"""Which token comes next: the most likely one, or one that is drawn."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixerzoo.errors import MixerzooError

#: One id that ends a text, or several.
Ends: TypeAlias = int | Collection[int] | Tensor | NDArray[np.integer[Any]]

#: Positions are computed in float32, which tells no more of them apart.
MOST_TOKENS = 2**24
#: A smaller temperature has a reciprocal beyond float64, and no other token than the most likely one to choose.
_COLDEST = sys.float_info.min
MOST_SEED = 2**64 - 1


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse what no text can be written with.

    Args:
        max_new_tokens: from 0 to `MOST_TOKENS`.
        temperature: 0, or positive and finite.
        top_k: at least 1.
        top_p: above 0 and at most 1.

    Raises:
        MixerzooError: an argument is out of its range, or no number.
    """
    for name, value, kind, words in (
        ("max_new_tokens", max_new_tokens, Integral, "a whole number"),
        ("temperature", temperature, Real, "a number"),
        ("top_k", 1 if top_k is None else top_k, Integral, "a whole number"),
        ("top_p", 1.0 if top_p is None else top_p, Real, "a number"),
    ):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise MixerzooError(f"{name} is {value!r}; it must be {words}")
    if max_new_tokens < 0:
        raise MixerzooError(f"max_new_tokens is {max_new_tokens}; it must not be negative")
    if max_new_tokens > MOST_TOKENS:
        raise MixerzooError(
            f"max_new_tokens is {max_new_tokens}; it must be at most {MOST_TOKENS}: beyond, positions are not exact"
        )
    if not (temperature >= 0 and _is_finite(temperature)):
        raise MixerzooError(f"temperature is {temperature}; it must be 0 (greedy) or positive")
    if top_k is not None and top_k < 1:
        raise MixerzooError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise MixerzooError(f"top_p is {top_p}; it must be above 0 and at most 1")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond float64
        return False


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Args:
        seed: from 0 to `MOST_SEED`.

    Raises:
        MixerzooError: it is out of that range.
    """
    if not 0 <= seed <= MOST_SEED:
        raise MixerzooError(f"seed is {seed}; it must be from 0 to {MOST_SEED}")


def check_generator(generator: object, device: torch.device, temperature: float) -> None:
    """Refuse what numbers cannot be drawn from, where the decoder is.

    Args:
        generator: a `torch.Generator`, or None.
        device: of the decoder.
        temperature: with 0 nothing is drawn, wherever the generator is.

    Raises:
        MixerzooError: it is something else, or on another device.
    """
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise MixerzooError(
            f"generator is {generator!r}; it must be a torch.Generator, as torch.Generator({str(device)!r})"
            ".manual_seed(0) gives"
        )
    there = generator.device
    # Without an index it is the current device.
    same = there == device or (there.type == device.type and None in (there.index, device.index))
    if temperature > 0 and not same:
        raise MixerzooError(
            f"generator is on {there}, and the decoder on {device}; make it with torch.Generator({str(device)!r})"
        )


class Sampling(NamedTuple):
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the most likely token. Towards 0 the distribution is that too, and with growing
            temperature it becomes uniform.
        top_k: draw among the k most likely tokens only; of equally likely ones the first are taken.
        top_p: draw among the fewest tokens whose probability reaches p only.
    """

    temperature: float
    top_k: int | None
    top_p: float | None

    def noise(self, logits_size: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """What chance there is in the choice of the next token: exponential [B, V]; None where there is none."""
        if self.temperature == 0:
            return None
        empty = torch.empty(logits_size, dtype=torch.float64, device=generator.device)
        return empty.exponential_(generator=generator)

    def pick(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The next token of every row, without a look at whether the logits are finite.

        Args:
            logits: [B, V]; −inf rules a token out.
            noise: from `noise`.

        Returns:
            int64 [B].
        """
        if noise is None:
            return logits.argmax(-1)
        largest, logits = logits.amax(-1, keepdim=True), logits.double()
        if self.top_k is not None and self.top_k < logits.size(-1):
            logits = logits.masked_fill(~_first_k(logits, int(self.top_k)), -math.inf)
        # The largest is 0 before the division, so nothing overflows: e⁰ is one of the terms.
        probabilities = ((logits - largest) / max(float(self.temperature), _COLDEST)).softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            # By logits, which differ even where a high temperature makes the probabilities equal.
            index = logits.sort(dim=-1, descending=True, stable=True).indices
            ordered = probabilities.gather(-1, index)
            before = ordered.cumsum(-1) - ordered
            ordered = ordered.masked_fill(before >= self.top_p, 0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
        # Of exponential times with these rates, the first to come: a draw from the distribution.
        return (probabilities / noise).argmax(-1)


def are_finite(logits: Tensor) -> Tensor:
    """Whether each row of the logits [B, V] has a largest number: a boolean scalar."""
    return logits.amax(-1).isfinite().all()


def refuse_not_finite(finite: Tensor) -> None:
    """Refuse to choose.

    Args:
        finite: of `are_finite`.

    Raises:
        MixerzooError: a row has no largest number, since one is NaN or infinite or none is possible.
    """
    if not bool(finite):
        raise MixerzooError(
            "the decoder's logits are not finite, so no token can be chosen: its weights are damaged, or too large for "
            "the dtype (float32 reaches further than float16)"
        )


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of every row, int64 [B].

    Args:
        logits: [B, V]; −inf rules a token out.
        sampling: how.
        generator: source of randomness on the device of the logits.

    Raises:
        MixerzooError: as `refuse_not_finite`.
    """
    refuse_not_finite(are_finite(logits))
    return sampling.pick(logits, sampling.noise(tuple(logits.shape), generator))


def _first_k(logits: Tensor, k: int) -> Tensor:
    """Where the k largest are, bool [B, V]; of equal ones the first."""
    threshold = logits.topk(k).values[:, -1:]
    above, equal = logits > threshold, logits == threshold
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def end_ids(end_of_text: Ends | None, vocab_size: int) -> list[int]:
    """The ids that end a text.

    Args:
        end_of_text: none, one or several.
        vocab_size: V.

    Raises:
        MixerzooError: one is no id below V.
    """
    ends: Any = end_of_text.tolist() if isinstance(end_of_text, Tensor | np.ndarray) else end_of_text
    if ends is None:
        return []
    several = isinstance(ends, Collection) and not isinstance(ends, str | bytes | Mapping)
    given = list(ends) if several else [ends]
    for each in given:
        if not isinstance(each, Integral) or isinstance(each, bool) or not 0 <= int(each) < vocab_size:
            raise MixerzooError(
                f"end_of_text is {each!r}; it must be a token's id, or several, from 0 to {vocab_size - 1}"
            )
    return [int(each) for each in given]
