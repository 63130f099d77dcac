"""Functions through `torch.compile`, each with graphs of its own: PyTorch keeps and counts them by their code."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from mixerzoo.errors import MixerError


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function through the compiler, as one graph for every look of its arguments.

    After a few graphs PyTorch gives up. Of several decoders in one process each has its own, which do not count for the
    others, and are not looked for among theirs.

    Args:
        function: a function or a bound method.
        options: of `torch.compile`, but for ``fullgraph``.

    Returns:
        The same, which raises `MixerError` where its arguments look different too often.
    """
    graphs = torch.compile(copied(function), fullgraph=True, **options)

    def run(*arguments: Any) -> Any:
        try:
            return graphs(*arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            limit = torch._dynamo.config.recompile_limit
            raise MixerError(
                f"this decoder wants more than {limit} graphs of {function.__qualname__.lstrip('_')}: its layers, the "
                "mixer's connections, or the shapes of batches differ too much for train.compile; set it to off"
            ) from error

    return run


def copied(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with code that is an object of its own.

    Args:
        function: a function or a bound method.
    """
    if isinstance(function, MethodType):
        return MethodType(copied(function.__func__), function.__self__)
    assert isinstance(function, FunctionType)
    code: CodeType = function.__code__.replace()
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    return copy
