"""Caches that a forward was interrupted over.

Those of transformers take tokens in layer by layer, and cannot give back what only some layers hold.
"""

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from mixerzoo.errors import CacheError

T = TypeVar("T")

_torn: WeakSet[Cache] = WeakSet()


def through(cache: Cache | None, steps: Callable[[], T]) -> T:
    """What ``steps`` gives; if they do not come to their end, the cache is remembered as torn.

    Args:
        cache: that they fill, if there is one.
        steps: of a forward.
    """
    if cache is None or torch.compiler.is_compiling():
        return steps()
    _torn.add(cache)
    found = steps()
    _torn.discard(cache)
    return found


def refuse_torn(cache: Cache | None) -> None:
    """Refuse a past that a forward was interrupted over, unless it was reset since.

    Raises:
        CacheError: it was not.
    """
    if cache is None or torch.compiler.is_compiling() or cache not in _torn:
        return
    if any(isinstance(layer, CacheLayerMixin) and int(layer.get_seq_length()) for layer in cache.layers):
        raise CacheError(
            "a forward over this cache was interrupted, so some of its layers may hold tokens that others do not; "
            "call its reset(), if that empties it, or begin with a new one"
        )
    _torn.discard(cache)
