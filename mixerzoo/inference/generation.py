"""Token by token through the cache: greedy or sampled, whole or as a stream, from ids or from text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixerzoo.errors import MixerzooError
from mixerzoo.inference.sampling import check_sampling, choose, end_ids
from mixerzoo.model import Decoder, KVCache

if TYPE_CHECKING:
    from mixerzoo.data import TextFormat, TextTokenizer

#: What ids can be given as: [B, T] of any integer type, or lists of them; [T] or a list of numbers is one row.
Ids: TypeAlias = Tensor | NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
    left_padding: Tensor | None = ...,
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
    left_padding: Tensor | None = None,
    cache: KVCache | None = None,
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
        left_padding: int64 [B], padding tokens on the left of each prompt row.
        cache: what came before the prompt; it is advanced over all tokens but the last one yielded.
            Default: a new one.
        tokenizer: encodes and decodes a text. `TextFormat.load` knows all that a checkpoint ends its texts with, a
            `TextTokenizer` its own end of text.

    Yields:
        int64 [B] for ids. For a text, parts of what follows it, up to the end of the text.

    Raises:
        MixerzooError: an argument is out of its range, or the decoder's logits are not finite.
        CacheError: the tokens do not fit in the given cache.
    """
    _check_decoder(decoder)
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    if isinstance(tokens, str):
        form = _format(tokenizer)
        _refuse_beside_text(left_padding, cache)
        prompt = form.encode_prompt(tokens)
        steps = _stream(
            decoder, _checked(decoder, prompt), max_new_tokens, temperature, top_k, top_p, generator, None, None
        )
        return _parts(steps, form, prompt)
    if tokenizer is not None:
        raise MixerzooError("ids are streamed as ids, so a tokenizer has no use; give a text, or leave it out")
    ids = _checked(decoder, tokens)
    return _stream(decoder, ids, max_new_tokens, temperature, top_k, top_p, generator, left_padding, cache)


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
            chosen = choose(logits, temperature, top_k, top_p, generator)
        yield chosen
        tokens = chosen[:, None]


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
    end_of_text: int | Collection[int] | None = ...,
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
    end_of_text: int | Collection[int] | None = ...,
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
    left_padding: Tensor | None = ...,
    end_of_text: int | Collection[int] | None = ...,
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
    left_padding: Tensor | None = None,
    end_of_text: int | Collection[int] | None = None,
    cache: KVCache | None = None,
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
        end_of_text: token, or several, that ends a row; what follows one in that row is that token too, and
            generation stops once every row has ended. Default: the ends that the tokenizer knows, if one is given.
        tokenizer: as in `stream`.

    Returns:
        int64 [B, T + at most max_new_tokens] for ids. For a text the whole text, without special tokens; for a list
        of texts a list. Greedily, each is what it would be alone.

    Raises:
        MixerzooError: as in `stream`.
        CacheError: as in `stream`.
    """
    _check_decoder(decoder)
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    texts = _texts(tokens)
    form = None if tokenizer is None and texts is None else _format(tokenizer)
    if end_of_text is None and form is not None:
        end_of_text = form.end_ids
    prompts: list[list[int]] = []
    if texts is None:
        ids = _checked(decoder, tokens)
    else:
        assert form is not None
        _refuse_beside_text(left_padding, cache)
        prompts = [form.encode_prompt(text) for text in texts]
        ids, left_padding = _padded(decoder, prompts)
    ends = end_ids(end_of_text, decoder.shape.vocab_size)
    steps = _stream(decoder, ids, max_new_tokens, temperature, top_k, top_p, generator, left_padding, cache)
    whole = _until_all_end(ids, steps, ends)
    if form is None or texts is None:
        return whole
    rows = zip(prompts, whole[:, ids.size(1) :].tolist(), strict=True)
    written = [form.tokenizer.decode(prompt + _before_end(new, ends)) for prompt, new in rows]
    return written[0] if isinstance(tokens, str) else written


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


def _check_decoder(decoder: object) -> None:
    # torch.compile gives another class with the same methods.
    if not callable(getattr(decoder, "new_cache", None)):
        raise MixerzooError(
            f"the decoder is {type(decoder).__name__}; it must be a mixerzoo.Decoder, as mixerzoo.load_checkpoint "
            "gives (a model of transformers has a generate of its own)"
        )


# What a prompt can be.


def _format(tokenizer: TextTokenizer | TextFormat | None) -> TextFormat:
    from mixerzoo.data import TextFormat, TextTokenizer

    if tokenizer is None:
        raise MixerzooError(
            "the prompt is text, so it takes a tokenizer, such as mixerzoo.TextFormat.load(directory of the checkpoint)"
        )
    if not isinstance(tokenizer, TextTokenizer | TextFormat):
        raise MixerzooError(
            f"the tokenizer is {type(tokenizer).__name__}; it must be a mixerzoo.TextTokenizer or TextFormat"
        )
    return TextFormat.of(tokenizer)


def _refuse_beside_text(left_padding: Tensor | None, cache: KVCache | None) -> None:
    for name, given in (("left_padding", left_padding), ("cache", cache)):
        if given is not None:
            raise MixerzooError(f"{name} goes with ids; a text is padded, and begins, by itself")


def _texts(tokens: object) -> list[str] | None:
    """The texts of a prompt; None where it is ids."""
    if isinstance(tokens, str):
        return [tokens]
    if isinstance(tokens, list | tuple) and any(isinstance(text, str) for text in tokens):
        if all(isinstance(text, str) for text in tokens):
            return list(tokens)
        raise MixerzooError("the prompt is a list of texts and of something else; it must be one or the other")
    return None


def _padded(decoder: Decoder, prompts: list[list[int]]) -> tuple[Tensor, Tensor | None]:
    """Rows of different lengths as int64 [B, T], and their left padding, if there is any."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = _checked(decoder, [[prompt[0]] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
    return ids, torch.tensor(padding, device=ids.device) if any(padding) else None


def _checked(decoder: Decoder, tokens: object) -> Tensor:
    """Ids as int64 [B, T] on the decoder's device.

    Raises:
        MixerzooError: they are no ids of the decoder's vocabulary, or not of this shape.
    """
    if isinstance(tokens, np.ndarray):
        if tokens.dtype.kind not in "iu":
            raise _no_integers(tokens.dtype)
        tokens = torch.tensor(tokens.astype(np.int64))
    if not isinstance(tokens, Tensor):
        tokens = torch.tensor(_rows(tokens, decoder.shape.vocab_size))
    if tokens.ndim == 1:
        tokens = tokens[None]
    if tokens.dtype not in _INTEGERS:
        raise _no_integers(tokens.dtype)
    if tokens.ndim != 2 or not tokens.numel():
        raise MixerzooError(f"the prompt must be [batch, at least one token], got {list(tokens.shape)}")
    tokens = tokens.to(decoder.lm_head.weight.device, torch.long)
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= decoder.shape.vocab_size:
        raise _beyond(least if least < 0 else most, decoder.shape.vocab_size)
    return tokens


def _rows(tokens: object, vocab_size: int) -> list[list[int]]:
    if not isinstance(tokens, Sequence) or isinstance(tokens, str | bytes):
        raise MixerzooError(
            f"the prompt is {type(tokens).__name__}; it must be ids (a tensor, an array or a list) or text"
        )
    rows = tokens if tokens and all(isinstance(row, list | tuple) for row in tokens) else [tokens]
    for row in rows:
        for token in row:
            if not isinstance(token, Integral) or isinstance(token, bool):
                raise MixerzooError(f"the prompt has {token!r} where an id should be; ids are whole numbers")
            if not 0 <= int(token) < vocab_size:
                raise _beyond(int(token), vocab_size)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise MixerzooError(
            f"the prompt's rows have {lengths[0]} to {lengths[-1]} ids; pad the shorter ones on the left and say so "
            "with left_padding, or give texts and a tokenizer"
        )
    if lengths == [0]:
        raise MixerzooError(f"the prompt must be [batch, at least one token], got {[len(rows), 0]}")
    return [[int(token) for token in row] for row in rows]


def _no_integers(dtype: torch.dtype | np.dtype[Any]) -> MixerzooError:
    return MixerzooError(f"the prompt is {dtype}; ids are whole numbers, of int64 or another integer type")


def _beyond(token: int, vocab_size: int) -> MixerzooError:
    return MixerzooError(f"the prompt has the id {token}; the decoder's vocabulary has the ids 0 to {vocab_size - 1}")
