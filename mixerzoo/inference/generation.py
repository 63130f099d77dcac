"""Token by token through the cache: greedy or sampled, whole or as a stream, from ids or from text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from mixerzoo.errors import MixerzooError
from mixerzoo.inference.prompt import (
    Ids,
    Padding,
    checked_ids,
    checked_padding,
    padded_ids,
    refuse_beside_text,
    text_format,
    texts_of,
)
from mixerzoo.inference.sampling import Ends, Sampling, end_ids
from mixerzoo.inference.steps import Steps
from mixerzoo.model import Decoder, KVCache

if TYPE_CHECKING:
    from mixerzoo.data import TextFormat, TextTokenizer


@overload
def stream(
    decoder: Decoder,
    tokens: str,
    *,
    max_new_tokens: int,
    tokenizer: TextTokenizer | TextFormat,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    generator: torch.Generator | None = ...,
    compile: bool = ...,
    prefill_chunk: int | None = ...,
) -> Iterator[str]: ...
@overload
def stream(
    decoder: Decoder,
    tokens: Ids,
    *,
    max_new_tokens: int,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    generator: torch.Generator | None = ...,
    compile: bool = ...,
    prefill_chunk: int | None = ...,
    left_padding: Padding | None = ...,
    cache: KVCache | None = ...,
) -> Iterator[Tensor]: ...
def stream(
    decoder: Decoder,
    tokens: Ids | str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    left_padding: Padding | None = None,
    cache: KVCache | None = None,
    compile: bool = False,
    prefill_chunk: int | None = None,
    tokenizer: TextTokenizer | TextFormat | None = None,
) -> Iterator[Tensor] | Iterator[str]:
    """Yield the next token of every row, step after step, or the text that follows a text.

    Args:
        decoder: the model.
        tokens: prompt. Ids [B, T], T ≥ 1, of any integer type, as a tensor, an array of NumPy or lists; [T], or a list
            of numbers, is one row. With a tokenizer, a text.
        max_new_tokens: how many steps, at most 2²⁴.
        temperature: of the softmax to sample from; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only.
        top_p: sample among the fewest tokens whose probability reaches p only.
        generator: source of randomness on the decoder's device; default: a fresh one, seeded with 0.
        left_padding: [B], padding tokens on the left of each prompt row; as a tensor, an array of NumPy or a list.
        cache: what came before the prompt; it is advanced over all tokens but the last one yielded.
            Default: a new one.
        compile: run the steps after the prompt as one graph, sampling included: a CUDA graph on CUDA. It takes a cache
            of fixed length; by default one is made, and used again by the next call that it is long enough for.
        prefill_chunk: tokens of the prompt that go through the decoder at a time. Default: as many as keep the mixer's
            state within half a GiB of a plain residual stream.
        tokenizer: encodes and decodes a text. `TextFormat.load` knows all that a checkpoint ends its texts with, a
            `TextTokenizer` its own end of text.

    Yields:
        int64 [B] for ids. For a text, parts of what follows it, up to the end of the text.

    Raises:
        MixerzooError: an argument is out of its range, or the decoder's logits are not finite.
        CacheError: the tokens do not fit in the given cache, or it grows and the steps are to be compiled.
    """
    _check_decoder_and_cache(decoder, cache)
    run = Steps(decoder, max_new_tokens, Sampling(temperature, top_k, top_p), generator, compile, prefill_chunk)
    if isinstance(tokens, str):
        form = text_format(tokenizer)
        refuse_beside_text(left_padding, cache)
        prompt = form.encode_prompt(tokens)
        return _parts(run.after(checked_ids(decoder, prompt)), form, prompt)
    if tokenizer is not None:
        raise MixerzooError("ids are streamed as ids, so a tokenizer has no use; give a text, or leave it out")
    ids = checked_ids(decoder, tokens)
    return run.after(ids, checked_padding(left_padding, ids, cache), cache)


def _parts(steps: Iterator[Tensor], form: TextFormat, prompt: list[int]) -> Iterator[str]:
    from mixerzoo.inference.writing import Writing

    writing = Writing(form, prompt=prompt)
    for step in steps:
        if part := writing.add(int(step)):
            yield part
        if writing.ended:
            return
    if part := writing.rest():
        yield part


@overload
def generate(
    decoder: Decoder,
    tokens: str,
    *,
    max_new_tokens: int,
    tokenizer: TextTokenizer | TextFormat,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    generator: torch.Generator | None = ...,
    compile: bool = ...,
    prefill_chunk: int | None = ...,
    end_of_text: Ends | None = ...,
) -> str: ...
@overload
def generate(
    decoder: Decoder,
    tokens: list[str] | tuple[str, ...],
    *,
    max_new_tokens: int,
    tokenizer: TextTokenizer | TextFormat,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    generator: torch.Generator | None = ...,
    compile: bool = ...,
    prefill_chunk: int | None = ...,
    end_of_text: Ends | None = ...,
) -> list[str]: ...
@overload
def generate(
    decoder: Decoder,
    tokens: Ids,
    *,
    max_new_tokens: int,
    tokenizer: TextTokenizer | TextFormat | None = ...,
    temperature: float = ...,
    top_k: int | None = ...,
    top_p: float | None = ...,
    generator: torch.Generator | None = ...,
    compile: bool = ...,
    prefill_chunk: int | None = ...,
    left_padding: Padding | None = ...,
    end_of_text: Ends | None = ...,
    cache: KVCache | None = ...,
) -> Tensor: ...
def generate(
    decoder: Decoder,
    tokens: Ids | str | list[str] | tuple[str, ...],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    left_padding: Padding | None = None,
    end_of_text: Ends | None = None,
    cache: KVCache | None = None,
    compile: bool = False,
    prefill_chunk: int | None = None,
    tokenizer: TextTokenizer | TextFormat | None = None,
) -> Tensor | str | list[str]:
    """The prompt and its continuation.

    Args:
        decoder: the model.
        tokens: prompt, as in `stream`; with a tokenizer also a list of texts, of any lengths.
        max_new_tokens: how many tokens at most.
        temperature: as in `stream`, like the next four.
        top_k: as in `stream`.
        top_p: as in `stream`.
        generator: as in `stream`.
        left_padding: as in `stream`.
        cache: as in `stream`.
        compile: as in `stream`.
        prefill_chunk: as in `stream`.
        end_of_text: token that ends a row, or several in a list or the like; what follows one in that row is that token
            too, and generation stops once every row has ended. Default: the ends that the tokenizer knows, if any.
        tokenizer: as in `stream`.

    Returns:
        int64 [B, T + at most max_new_tokens] for ids. For a text the whole text, without special tokens; for a list
        of texts a list. Greedily, each is what it would be alone.

    Raises:
        MixerzooError, CacheError: as in `stream`; logits that are not finite, where no token ends a row, in the end.
    """
    _check_decoder_and_cache(decoder, cache)
    texts = texts_of(tokens)
    form = None if tokenizer is None and texts is None else text_format(tokenizer)
    prompts: list[list[int]] = []
    if form is None or texts is None:
        ids = checked_ids(decoder, tokens)
        padding = checked_padding(left_padding, ids, cache)
    else:
        refuse_beside_text(left_padding, cache)
        prompts = [form.encode_prompt(text) for text in texts]
        ids, padding = padded_ids(decoder, prompts)
    ends = end_ids(form.end_ids if form is not None and end_of_text is None else end_of_text, decoder.shape.vocab_size)
    sampling = Sampling(temperature, top_k, top_p)
    run = Steps(decoder, max_new_tokens, sampling, generator, compile, prefill_chunk, waits=bool(ends))
    whole = _until_all_end(ids, run.after(ids, padding, cache), ends)
    if form is None or texts is None:
        return whole
    written = _decoded(form, prompts, whole[:, ids.size(1) :], ends)
    return written[0] if isinstance(tokens, str) else written


def _decoded(form: TextFormat, prompts: list[list[int]], new: Tensor, ends: Sequence[int]) -> list[str]:
    rows = zip(prompts, new.tolist(), strict=True)
    return [form.tokenizer.decode(prompt + _before_end(row, ends)) for prompt, row in rows]


def _until_all_end(tokens: Tensor, steps: Iterator[Tensor], ends: Sequence[int]) -> Tensor:
    """The prompt [B, T] and its steps, up to the one with which the last row ends."""
    columns = [tokens]
    endings = torch.tensor(ends, dtype=torch.long, device=tokens.device)
    ended = torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)
    for chosen in steps:
        if not ends:
            columns.append(chosen[:, None])
            continue
        column = torch.where(ended, columns[-1][:, -1], chosen)
        columns.append(column[:, None])
        ended = torch.isin(column, endings)
        if bool(ended.all()):
            break
    return torch.cat(columns, dim=1)


def _before_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _check_decoder_and_cache(decoder: object, cache: object) -> None:
    # torch.compile gives another class with the same methods.
    if not callable(getattr(decoder, "new_cache", None)):
        raise MixerzooError(
            f"the decoder is {type(decoder).__name__}; it must be a mixerzoo.Decoder, as mixerzoo.load_checkpoint "
            "gives (a model of transformers has a generate of its own)"
        )
    if cache is not None and not isinstance(cache, KVCache):
        raise MixerzooError(
            f"the cache is {type(cache).__name__}; it must be a mixerzoo.KVCache, as decoder.new_cache gives"
        )
