"""Functions through `torch.compile`, each with graphs of its own: PyTorch keeps and counts them by their code."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch

from mixerzoo.errors import BackendError

#: Graphs of one function at most. PyTorch's own limit is for functions that may as well go on without the compiler.
MOST_GRAPHS = 64

_copies = itertools.count()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function through the compiler, as one graph for every look of its arguments.

    Of several decoders in one process each has its own graphs, which do not count for the others, and are not looked
    for among theirs.

    Args:
        function: a function or a bound method.
        options: of `torch.compile`, but for ``fullgraph``.

    Returns:
        A function of the same positional arguments. It raises `BackendError` where they look different more than
        `MOST_GRAPHS` times.
    """
    graphs = torch.compile(copied(function), fullgraph=True, **options)

    def run(*arguments: Any) -> Any:
        try:
            return graphs(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            pass
        try:
            # Not around every call: it takes as long as a small operation.
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                return graphs(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise BackendError(
                f"training would be compiled more than {MOST_GRAPHS} times: the shapes of batches, or the layers, "
                "differ too often; set train.compile to off"
            ) from error

    return run


def copied(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with code of its own, under a name of its own: what is known of shapes is kept by that.

    Args:
        function: a function or a bound method.
    """
    if isinstance(function, MethodType):
        return MethodType(copied(function.__func__), function.__self__)
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
