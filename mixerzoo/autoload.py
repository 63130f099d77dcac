"""Makes the model type ``mixerzoo`` known to transformers in every process that has both; nobody imports it by name.

transformers knows a model type that it has not by code beside the weights, and asks whether to trust it: even
`AutoTokenizer`, which reads ``config.json`` before the tokenizer's own files. It has no place where a package could
announce a type. PyTorch has one, the entry points ``torch.backends``: it calls `register` at the end of its own import,
which transformers begins with. (``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` switches that off; then the code beside the weights
is used, as it is where mixerzoo is not installed.)

Nothing heavy is imported before a ``config.json`` of this type is met.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Have transformers know the type as soon as it looks for types at all."""
    if _AUTO not in sys.modules:
        sys.meta_path.insert(0, _Watch())


class _Watch(MetaPathFinder):
    """Waits for the module in which transformers keeps its types, once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_announce(module: ModuleType) -> None:
            execute(module)
            _announce(module)

        # In place: a loader of our own would lack what others ask of transformers' (its source, its resources).
        spec.loader.exec_module = execute_and_announce  # type: ignore[method-assign]  # of this one object alone
        return spec


def _announce(auto: Any) -> None:
    from transformers.configuration_utils import PreTrainedConfig

    class MixerZooConfig(PreTrainedConfig):
        """Stands for `mixerzoo.hf.MixerZooConfig`, which takes its place when the first one is read."""

        model_type = "mixerzoo"

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            from mixerzoo.hf import MixerZooConfig

            return MixerZooConfig(*args, **kwargs)

        @classmethod
        def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
            from mixerzoo.hf import MixerZooConfig

            return MixerZooConfig.from_dict(*args, **kwargs)

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            from mixerzoo.hf import MixerZooConfig

            return MixerZooConfig.from_pretrained(*args, **kwargs)

    auto.AutoConfig.register("mixerzoo", MixerZooConfig)
