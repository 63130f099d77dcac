"""What a prompt can be: ids in many forms, or text with a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixerzoo.errors import MixerzooError
from mixerzoo.model import Decoder, KVCache

if TYPE_CHECKING:
    from mixerzoo.data import TextFormat, TextTokenizer

#: What ids can be given as: [B, T] of any integer type, or lists of them; [T] or a list of numbers is one row.
Ids: TypeAlias = Tensor | NDArray[np.integer[Any]] | Sequence[int] | Sequence[Sequence[int]]
#: Numbers of padding tokens [B], likewise.
Padding: TypeAlias = Tensor | NDArray[np.integer[Any]] | Sequence[int]

_INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


def text_format(tokenizer: TextTokenizer | TextFormat | None) -> TextFormat:
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


def refuse_beside_text(left_padding: Padding | None, cache: KVCache | None) -> None:
    for name, given in (("left_padding", left_padding), ("cache", cache)):
        if given is not None:
            raise MixerzooError(f"{name} goes with ids; a text is padded, and begins, by itself")


def texts_of(tokens: object) -> list[str] | None:
    """The texts of a prompt; None where it is ids."""
    if isinstance(tokens, str):
        return [tokens]
    if isinstance(tokens, list | tuple) and any(isinstance(text, str) for text in tokens):
        if all(isinstance(text, str) for text in tokens):
            return list(tokens)
        raise MixerzooError("the prompt is a list of texts and of something else; it must be one or the other")
    return None


def padded_ids(decoder: Decoder, prompts: list[list[int]]) -> tuple[Tensor, Tensor | None]:
    """Rows of different lengths as int64 [B, T], and their left padding, if there is any."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = checked_ids(decoder, [[prompt[0]] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
    return ids, torch.tensor(padding, device=ids.device) if any(padding) else None


def checked_ids(decoder: Decoder, tokens: object) -> Tensor:
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


def checked_padding(left_padding: object, tokens: Tensor, cache: KVCache | None) -> Tensor | None:
    """Padding on the left of each row as int64 [B] on the device of the prompt.

    Args:
        left_padding: as it was given; None: there is none.
        tokens: the prompt, of `checked_ids`.
        cache: what came before it, padding too.

    Raises:
        MixerzooError: it is no number of tokens for each row that leaves the row one of its own.
    """
    if left_padding is None:
        return None
    counts, rows = left_padding, tokens.size(0)
    if isinstance(counts, Tensor | np.ndarray):
        counts = counts.tolist()
    if (
        not isinstance(counts, Sequence)
        or isinstance(counts, str | bytes)
        or len(counts) != rows
        or not all(isinstance(count, Integral) and not isinstance(count, bool) for count in counts)
    ):
        raise MixerzooError(
            f"left_padding is {left_padding!r}; it must be {rows} whole numbers, one for each row of the prompt: how "
            "many padding tokens are on its left"
        )
    length = tokens.size(1) + (0 if cache is None else cache.length)
    if not all(0 <= count < length for count in counts):
        raise MixerzooError(
            f"left_padding is {list(counts)}; in rows of {length} tokens it must be from 0 to {length - 1}, so that "
            "each has a token of its own"
        )
    return torch.tensor([int(count) for count in counts], device=tokens.device)


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
