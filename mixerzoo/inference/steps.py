"""The steps of a generation: the prompt through the decoder, a part at a time, and then token by token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixerzoo.errors import CacheError, MixerzooError
from mixerzoo.inference.sampling import Sampling, are_finite, check_generator, check_sampling, choose, refuse_not_finite
from mixerzoo.model import Decoder, KVCache
from mixerzoo.model.backends import MOST_MASK_BYTES

#: Bytes by which a mixer's state may exceed that of a residual stream while a prompt goes through, so that it takes at
#: most half a GiB with the masks of a prompt in parts.
_MOST_IN_FLIGHT = 2**29 - MOST_MASK_BYTES
#: Tokens of a prompt, all rows together, that are never cut into parts unless asked for.
_FEW = 1024
#: Fixed caches have this length, or it doubled some times, so that a text that grows takes few graphs.
_SHORTEST = 256
#: A cache that is so many times as long as needed is not used: a compiled step reads all of it.
_TOO_LONG = 4
#: Graphs of a step that one process may have: one for each decoder, batch size, length and way of sampling.
_MOST_GRAPHS = 256

#: Fixed caches that no generation uses, of each decoder one.
_idle: WeakKeyDictionary[Decoder, KVCache] = WeakKeyDictionary()


@dataclass(frozen=True)
class Steps:
    """What continues a prompt.

    Args:
        decoder: the model.
        max_new_tokens: how many steps.
        sampling: how each token is chosen.
        generator: source of randomness on the decoder's device; None: a fresh one, seeded with 0.
        compile: whether the steps after the prompt are one graph.
        prefill_chunk: tokens of the prompt at a time; None: `default_chunk`.
        waits: look at each token's logits before the next step, which waits for the device; else after the last one.
    """

    decoder: Decoder
    max_new_tokens: int
    sampling: Sampling
    generator: torch.Generator | None = None
    compile: bool = False
    prefill_chunk: int | None = None
    waits: bool = True

    def __post_init__(self) -> None:
        check_sampling(self.max_new_tokens, *self.sampling)
        check_chunk(self.prefill_chunk)
        check_generator(self.generator, self.decoder.lm_head.weight.device, self.sampling.temperature)

    def after(
        self, tokens: Tensor, left_padding: Tensor | None = None, cache: KVCache | None = None
    ) -> Iterator[Tensor]:
        """Yield the next token [B] of every row, step after step.

        Args:
            tokens: the prompt, int64 [B, T].
            left_padding: int64 [B], padding tokens on the left of each row.
            cache: what came before the prompt; None: nothing.

        Raises:
            CacheError: the steps are to be compiled, and the cache grows or is too short.
            MixerzooError: the logits are not finite.
        """
        generator = self.generator or torch.Generator(tokens.device).manual_seed(0)
        if self.max_new_tokens == 0:
            return
        with self._cache(tokens, cache) as held:
            yield from self._steps(tokens, left_padding, held, generator)

    def _steps(
        self, tokens: Tensor, left_padding: Tensor | None, cache: KVCache, generator: torch.Generator
    ) -> Iterator[Tensor]:
        # Inference mode is entered per step: a generator that held it open would leak it to its caller.
        with torch.inference_mode():
            logits = self._prefilled(tokens, left_padding, cache)
            chosen = choose(logits, self.sampling, generator)
            all_finite = torch.ones((), dtype=torch.bool, device=logits.device)
        yield chosen
        for _ in range(self.max_new_tokens - 1):
            with torch.inference_mode():
                if self.compile:
                    noise = self.sampling.noise(tuple(logits.shape), generator)
                    step = _compiled(tokens.device.type)
                    chosen, finite = step(self.decoder, chosen[:, None], cache, left_padding, self.sampling, noise)
                else:
                    logits = self.decoder(chosen[:, None], cache, left_padding=left_padding, last_only=True)[:, -1]
                    noise = self.sampling.noise(tuple(logits.shape), generator)
                    chosen, finite = self.sampling.pick(logits, noise), are_finite(logits)
                if self.waits:
                    refuse_not_finite(finite)
                all_finite = all_finite & finite
            yield chosen
        refuse_not_finite(all_finite)

    def _prefilled(self, tokens: Tensor, left_padding: Tensor | None, cache: KVCache) -> Tensor:
        """Logits [B, V] after the prompt."""
        chunk = self.prefill_chunk or default_chunk(self.decoder, *tokens.shape)
        for part in tokens.split(chunk, dim=1):
            logits = self.decoder(part, cache, left_padding=left_padding, last_only=True)
        last: Tensor = logits[:, -1]
        return last

    @contextmanager
    def _cache(self, tokens: Tensor, given: KVCache | None) -> Iterator[KVCache]:
        """The given cache, or one of our own, which a later generation may have where it is of fixed length."""
        batch_size = tokens.size(0)
        if not self.compile:
            yield self.decoder.new_cache(batch_size) if given is None else given
            return
        # The last token goes through no decoder.
        needed = tokens.size(1) + self.max_new_tokens - 1
        if given is not None:
            _check_fixed(given, needed)
            yield given
            return
        cache = _idle.pop(self.decoder, None)
        if cache is None or not _serves(cache, self.decoder, batch_size, needed):
            cache = self.decoder.new_cache(batch_size, fixed_length(needed))
        cache.reset()
        try:
            yield cache
        finally:
            _idle[self.decoder] = cache


def fixed_length(needed: int) -> int:
    """Tokens of a cache that compiled steps make for themselves.

    Args:
        needed: tokens that are to fit in.
    """
    return _SHORTEST << ((needed - 1) // _SHORTEST).bit_length()


def check_chunk(prefill_chunk: int | None) -> None:
    """Refuse what is no number of tokens.

    Raises:
        MixerzooError: it is none.
    """
    if prefill_chunk is not None and (
        not isinstance(prefill_chunk, Integral) or isinstance(prefill_chunk, bool) or prefill_chunk < 1
    ):
        raise MixerzooError(f"prefill_chunk is {prefill_chunk!r}; it must be a whole number of tokens, at least 1")


def default_chunk(decoder: Decoder, batch_size: int, num_tokens: int) -> int:
    """Tokens of a prompt that go through the decoder at a time, by its mixer's account of its state.

    Args:
        decoder: the model.
        batch_size: B.
        num_tokens: T.

    Returns:
        As many as keep the state, with attention's masks, within 0.5 GiB of a residual stream of the same tokens; T
        where all do.
    """
    if num_tokens == 1 or batch_size * num_tokens <= _FEW:
        return num_tokens
    dtype = decoder.lm_head.weight.dtype
    beyond = batch_size * (decoder.mixer.in_flight_bytes(dtype) - decoder.shape.hidden_size * dtype.itemsize)
    if beyond * num_tokens <= _MOST_IN_FLIGHT:
        return num_tokens
    return max(1, _MOST_IN_FLIGHT // beyond)


def _check_fixed(cache: KVCache, needed: int) -> None:
    if cache.max_length is None:
        raise CacheError(
            "compiled steps take a cache of fixed length, and this one grows; make it with "
            "decoder.new_cache(batch_size, max_length), or leave it out"
        )
    if cache.length + needed > cache.max_length:
        raise CacheError(
            f"{needed} new tokens after {cache.length} do not fit in a cache of max_length {cache.max_length}; make it "
            f"at least {cache.length + needed}"
        )


def _serves(cache: KVCache, decoder: Decoder, batch_size: int, needed: int) -> bool:
    weight = decoder.lm_head.weight
    assert cache.max_length is not None
    kept = (cache.plan, cache.batch_size, cache.dtype, cache.device)
    fits = needed <= cache.max_length <= max(_SHORTEST, _TOO_LONG * needed)
    return fits and kept == (decoder.plan, batch_size, weight.dtype, weight.device)


def _step(
    decoder: Decoder,
    tokens: Tensor,
    cache: KVCache,
    left_padding: Tensor | None,
    sampling: Sampling,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The next tokens [B], and whether they could be chosen."""
    logits = decoder(tokens, cache, left_padding=left_padding, last_only=True)[:, -1]
    return sampling.pick(logits, noise), are_finite(logits)


@functools.cache
def _compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`_step` as one graph."""
    on_cuda = device == "cuda"
    graph = torch.compile(_step, fullgraph=True, dynamic=False, mode="reduce-overhead" if on_cuda else None)

    def step(*arguments: Any) -> tuple[Tensor, Tensor]:
        if on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS):
            chosen, finite = graph(*arguments)
        # A replay writes over what the last one gave.
        return chosen.clone(), finite

    return step
