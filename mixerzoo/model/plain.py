"""Which modules may be computed by an operation on their parameters, in place of being called."""

from __future__ import annotations

from torch import Tensor, nn


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a module does what its kind does, and nothing else.

    It does not where adapters or quantisation have put another module or another kind of weight there, nor where
    something hooks on it.

    Args:
        module: any.
        kind: nn.Linear, say.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    # accelerate puts a forward of its own on modules whose weights come and go.
    changed = any(hooks) or nn.modules.module._has_any_global_hook() or "forward" in vars(module)
    return type(module) is kind and type(module.weight) in (nn.Parameter, Tensor) and not changed
