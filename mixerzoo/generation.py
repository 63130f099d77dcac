"""Token by token through the cache: greedy or sampled, whole or as a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mixerzoo.cache import KVCache
from mixerzoo.decoder import Decoder
from mixerzoo.errors import MixerzooError


def stream(
    decoder: Decoder,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    left_padding: Tensor | None = None,
    cache: KVCache | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, step after step.

    Args:
        decoder: the model.
        tokens: prompt, int64 [B, T], T ≥ 1.
        max_new_tokens: how many steps.
        temperature: of the softmax to sample from; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only.
        top_p: sample among the fewest tokens whose probability reaches p only.
        generator: source of randomness on the decoder's device; default: a fresh one, seeded with 0.
        left_padding: int64 [B], padding tokens on the left of each prompt row.
        cache: what came before the prompt; it is advanced over all tokens but the last one yielded.
            Default: a new one.

    Yields:
        int64 [B].

    Raises:
        MixerzooError: an argument is out of its range.
        CacheError: the tokens do not fit in the given cache.
    """
    _check(tokens, max_new_tokens, temperature, top_k, top_p)
    return _stream(decoder, tokens, max_new_tokens, temperature, top_k, top_p, generator, left_padding, cache)


def _stream(
    decoder: Decoder,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
    left_padding: Tensor | None,
    cache: KVCache | None,
) -> Iterator[Tensor]:
    if generator is None:
        generator = torch.Generator(tokens.device).manual_seed(0)
    if cache is None:
        cache = decoder.new_cache(tokens.size(0))
    for _ in range(max_new_tokens):
        # Entered per step: a generator that held it open would leak it to its caller.
        with torch.inference_mode():
            logits = decoder(tokens, cache, left_padding=left_padding, last_only=True)[:, -1]
            chosen = _choose(logits, temperature, top_k, top_p, generator)
        yield chosen
        tokens = chosen[:, None]


def generate(
    decoder: Decoder,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    left_padding: Tensor | None = None,
    end_of_text: int | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """The prompt and its continuation.

    Args:
        decoder: the model.
        tokens: prompt, int64 [B, T], T ≥ 1.
        max_new_tokens: how many tokens at most.
        temperature: as in `stream`, like the next four.
        top_k: as in `stream`.
        top_p: as in `stream`.
        generator: as in `stream`.
        left_padding: as in `stream`.
        cache: as in `stream`.
        end_of_text: token that ends a row; what follows it in that row is ``end_of_text`` too, and
            generation stops once every row has ended.

    Returns:
        int64 [B, T + at most max_new_tokens].
    """
    steps = stream(
        decoder,
        tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
        left_padding=left_padding,
        cache=cache,
    )
    ended = torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)
    columns = [tokens]
    for chosen in steps:
        if end_of_text is None:
            columns.append(chosen[:, None])
            continue
        columns.append(torch.where(ended, end_of_text, chosen)[:, None])
        ended = ended | (chosen == end_of_text)
        if bool(ended.all()):
            break
    return torch.cat(columns, dim=1)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double() / temperature
    if top_k is not None and top_k < logits.size(-1):
        threshold = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, index = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p, 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check(tokens: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if tokens.ndim != 2 or tokens.size(1) == 0:
        raise MixerzooError(f"the prompt must be [batch, at least one token], got {list(tokens.shape)}")
    if max_new_tokens < 0:
        raise MixerzooError(f"max_new_tokens is {max_new_tokens}; it must not be negative")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise MixerzooError(f"temperature is {temperature}; it must be 0 (greedy) or positive")
    if top_k is not None and top_k < 1:
        raise MixerzooError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise MixerzooError(f"top_p is {top_p}; it must be above 0 and at most 1")
