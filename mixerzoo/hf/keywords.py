"""What callers of the models pass beside tokens: the past, under either of its names, and keywords for others to read.

From version 5.24 on, transformers calls the past ``cache``; until then ``past_key_values``. Before, ``cache`` was the
name of the pages of continuous batching alone, which attention functions read; since, no attention function does.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.generation.continuous_batching.input_outputs import PagedAttentionArgs
from transformers.modeling_flash_attention_utils import _flash_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mixerzoo.errors import MixerError, did_you_mean

_NEW, _OLD = "cache", "past_key_values"
#: What this transformers calls the past, in outputs and where masks are made.
PAST = _NEW if _NEW in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else _OLD

#: Read by transformers' decorators around `forward`.
_READ_AROUND = {"output_attentions", "is_causal", "debug_io", "debug_io_dir", "prune_layers"}
#: What a loss is divided by; trainers that compute the loss themselves give it too.
_NUM_ITEMS = "num_items_in_batch"
_LOSS = {_NUM_ITEMS, "ignore_index", "shift_labels"}
#: Read by `generate`, which passes what its way of decoding does not name on to the model.
READ_BY_GENERATE = {"tokenizer", "assistant_tokenizer", "assistant_model", "streamer", "synced_gpus"}
#: Where sequences that are packed into one begin and end.
_PACKING = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
_PAGED = set(PagedAttentionArgs.__annotations__)
#: What a model itself gives its attention function.
_GIVEN = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "sliding_window", _NEW}
#: What is looked through for the name that was meant.
_ARGUMENTS = (
    "input_ids", "attention_mask", "position_ids", _OLD, _NEW, "inputs_embeds", "labels", "use_cache",
    "logits_to_keep", "output_hidden_states", "output_attentions", "return_dict",
)  # fmt: skip
#: What other models call the past, or once called it.
_NAMES_OF_PAST = ("past", "layer_past", "mems", "past_key_value", "cache_params")
#: What other models read, and what to know where it looks like an argument of ours and is none.
_NO_SUCH_THING = {
    "token_type_ids": "tokens have no types here",
    "cache_position": "the past itself says how many tokens went before",
}
#: Attention functions that give no weights.
_WITHOUT_WEIGHTS = ("sdpa", "flex", "flash", "kernels")


def find_past(past_key_values: Any, cache: Any) -> tuple[Cache | None, PagedAttentionCache | None]:
    """The past, told by its type.

    Args:
        past_key_values: what was given under the older name.
        cache: what was given under the newer one.

    Returns:
        A cache, or the pages of continuous batching, or neither.

    Raises:
        MixerError: it is of another kind, or there are two.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise MixerError(f"{_OLD} and {_NEW} are two names of the past, and each was given one; pass one of them")
    past = cache if past_key_values is None else past_key_values
    if past is None or isinstance(past, Cache):
        return past, None
    if isinstance(past, PagedAttentionCache):
        return None, past
    raise MixerError(f"the past is a {type(past).__name__}; pass what an earlier forward gave, or another Cache")


def use_pages(
    pages: PagedAttentionCache, key: Tensor, value: Tensor, step: int, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Have keys and values go through the pages of continuous batching.

    Args:
        pages: of all steps.
        key: [1, G, T, d].
        value: likewise.
        step: whose keys and values they are.
        kwargs: of the attention function; changed as the pages need it.

    Returns:
        Keys and values for the attention function.
    """
    if PAST == _NEW:
        key, value = pages.update(key, value, step, kwargs)
    else:
        kwargs[_NEW] = pages  # the attention function does it
    return key, value


def check_tail(mixer: str, implementation: str | None, *, pages: bool) -> None:
    """Nobody who keeps the past leaves out the tail of a sequence.

    Args:
        mixer: name of the mixer that has a tail.
        implementation: of attention.
        pages: whether this is continuous batching.

    Raises:
        MixerError: somebody would.
    """
    if pages or not (implementation or "eager").startswith(("eager", *_WITHOUT_WEIGHTS)):
        raise MixerError(
            f"mixer {mixer!r} keeps a tail of each sequence, and engines that keep the past behind their attention "
            "function keep keys and values alone; use generate, or mixerzoo's own Decoder"
        )


def check_positions(mixer: str, mask: Any, kwargs: dict[str, Any]) -> None:
    """Where no positions are given, nothing else may keep texts apart: the tail of one would be given to the next.

    Args:
        mixer: name of the mixer that has a tail.
        mask: of attention.
        kwargs: for the attention function.

    Raises:
        MixerError: something may.
    """
    packing = any(kwargs.get(name) is not None for name in _PACKING)
    if packing or isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim > 2):
        raise MixerError(
            f"mixer {mixer!r} keeps a tail of each sequence, and where a text begins it learns from positions alone; "
            "pass position_ids that begin anew with each"
        )


def check_keywords(
    kwargs: dict[str, Any], implementation: str, *, pages: bool, packed: bool, depth: str | None
) -> None:
    """Nothing that was asked for goes unread.

    Args:
        kwargs: what `forward` was given beside its own arguments. None stands for what is not there.
        implementation: of attention.
        pages: whether this is continuous batching.
        packed: whether masks keep packed sequences apart, whatever the attention function reads. Those of transformers
            do where there are positions, and neither a mask nor a cache.
        depth: why attention gives no weights of tokens alone, if so.

    Raises:
        MixerError: a keyword is unknown, or this model cannot do what it asks for.
    """
    asked = {name for name, value in kwargs.items() if value is not None}
    if not asked:
        return
    if kwargs.get("output_router_logits") is False:
        asked.discard("output_router_logits")
    if kwargs.get("output_attentions") and depth is not None:
        raise MixerError(f"output_attentions: {depth}, whose weights are not those of tokens alone; leave it out")
    if kwargs.get("output_attentions") and implementation.startswith(_WITHOUT_WEIGHTS):
        raise MixerError(
            f"output_attentions: the attention implementation {implementation!r} gives no weights; load the model with "
            "attn_implementation='eager'"
        )
    unknown = asked - _READ_AROUND - {_NUM_ITEMS}
    if pages:
        unknown -= _PAGED
    if packed or pages:
        unknown -= _PACKING
    if unknown:
        unknown -= set(_read_by_attention(implementation))
    if not unknown:
        return
    if unknown <= _PACKING:
        raise MixerError(
            f"{_listed(unknown)}: the attention implementation {implementation!r} does not read where packed "
            "sequences begin and end; pass position_ids that begin anew with each, with use_cache=False and without "
            "attention_mask"
        )
    hints = "".join(map(_hint, sorted(unknown)))
    raise MixerError(f"nothing here reads {_listed(unknown)}{hints}; leave out what the model cannot do")


def _hint(name: str) -> str:
    if name in _NO_SUCH_THING:
        return f" ({_NO_SUCH_THING[name]})"
    return f" (did you mean {_NEW!r}?)" if name in _NAMES_OF_PAST else did_you_mean(name, _ARGUMENTS)


def split_loss_keywords(
    kwargs: dict[str, Any], loss: Callable[..., Any], *, labels: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the loss reads, and the rest.

    Args:
        kwargs: what `forward` was given beside its own arguments.
        loss: the function.
        labels: whether there are any.

    Raises:
        MixerError: there are no labels, so no loss, for which something was given.
    """
    named = _LOSS
    if labels and not kwargs.keys() <= named:
        named = named | set(_parameters(loss))
    read = {name: value for name, value in kwargs.items() if name in named}
    rest = {name: value for name, value in kwargs.items() if name not in named}
    unread = {name for name, value in read.items() if value is not None} - {_NUM_ITEMS}
    if unread and not labels:
        raise MixerError(f"{_listed(unread)}: without labels there is no loss to read it; pass labels")
    return read, rest


def chosen(hidden_states: tuple[Tensor, ...], which: bool | int | list[int] | None) -> tuple[Any, ...]:
    """Hidden states, of which a caller may want some alone.

    Args:
        hidden_states: all.
        which: the numbers of those wanted, counted from the end where negative; a number that there is not chooses
            none. True: all.

    Returns:
        As many, with None in place of those that are not wanted.
    """
    if isinstance(which, bool) or which is None:
        return hidden_states
    count = len(hidden_states)
    numbers = {number % count for number in ([which] if isinstance(which, int) else which) if -count <= number < count}
    return tuple(x if number in numbers else None for number, x in enumerate(hidden_states))


@torch.compiler.assume_constant_result
def _read_by_attention(implementation: str) -> tuple[str, ...]:
    functions = [ALL_ATTENTION_FUNCTIONS.get_interface(implementation, _nothing)]
    if "flash" in implementation:
        functions.append(_flash_attention_forward)
    return tuple({name for function in functions for name in _parameters(function)} - _GIVEN)


def _nothing() -> None:
    """Stands for our own attention function, which reads what it is given by the model alone."""


def _parameters(function: Callable[..., Any]) -> list[str]:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in by_name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
