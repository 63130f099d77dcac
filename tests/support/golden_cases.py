"""The golden vectors as they lie in tests/support/goldens; see the README there."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mixerzoo.testing.reference import Begin, Sizes, Trace, run

FOLDER = Path(__file__).parent / "goldens"


@dataclass(frozen=True)
class Golden:
    """One case.

    Attributes:
        name: of its folder.
        config: its ``config.json``, in the layout of the reference implementation.
        tensors: float32 weights by the reference's names: backbone and the method's own.
        facts: its ``expected.json``.
        expected: ``input_ids``, float64 logits and more.
    """

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    expected: Mapping[str, Tensor]

    @property
    def tokens(self) -> Tensor:
        """int64 [2, 17]."""
        return self.expected["input_ids"].long()

    @property
    def k_norms(self) -> list[str]:
        """The k-norm orders for which there are logits."""
        return [order for order in ("post_rope", "pre_rope") if f"logits.{order}" in self.expected]

    def logits(self, k_norm: str) -> Tensor:
        """float64 [2, 17, 97]."""
        return self.expected[f"logits.{k_norm}"]

    def loss(self, k_norm: str) -> float:
        """Mean of −log p(next token)."""
        loss: float = self.facts["loss"][k_norm]
        return loss

    def write(
        self, directory: Path, *, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> Path:
        """Assemble the checkpoint directory.

        Args:
            directory: created if missing.
            config: keys that replace those of the case; None as a value removes the key.
            tensors: all tensors, where they are not those of the case.
        """
        directory.mkdir(parents=True, exist_ok=True)
        merged = {**self.config, **(config or {})}
        kept = {key: value for key, value in merged.items() if value is not None}
        (directory / "config.json").write_text(json.dumps(kept), encoding="utf-8")
        save_file(dict(self.tensors if tensors is None else tensors), directory / "model.safetensors")
        return directory


@functools.cache
def golden(name: str) -> Golden:
    """Read a case."""
    folder = FOLDER / name
    facts = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tensors = load_file(FOLDER / "weights" / f"{facts['weights']}.safetensors")
    extra = folder / "extra.safetensors"
    if extra.exists():
        tensors |= load_file(extra)
    without = tuple(facts.get("without", ()))
    return Golden(
        name=name,
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
        tensors={key: tensor for key, tensor in tensors.items() if not key.endswith(without)},
        facts=facts,
        expected=load_file(folder / "expected.safetensors"),
    )


NAMES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def assembled(method: str, *variants: Golden) -> tuple[Path, ...]:
    """Checkpoint directories of a method's goldens, each with its ``expected.safetensors``.

    They live as long as this process.

    Args:
        method: beginning of the names of its cases.
        variants: more cases.
    """
    folder = Path(tempfile.mkdtemp(prefix="goldens-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = []
    for case in [*(golden(name) for name in NAMES if name.startswith(method)), *variants]:
        found.append(case.write(folder / case.name))
        save_file(dict(case.expected), found[-1] / "expected.safetensors")
    return tuple(found)


def naive_traces(case: Golden, k_norm: str, begin: Begin) -> list[Trace]:
    """What the naive decoder makes of each row of a golden's tokens.

    Args:
        case: gives weights, sizes and tokens.
        k_norm: order of norm and RoPE of the keys.
        begin: of its method.
    """
    sizes = Sizes(
        num_heads=case.config["num_attention_heads"],
        num_kv_heads=case.config["num_key_value_heads"],
        head_dim=case.config["head_dim"],
        order=tuple(range(case.config["num_hidden_layers"])),
        norm_eps=case.config["rms_norm_eps"],
        rope_theta=case.config["rope_theta"],
        k_norm=k_norm,
    )
    weights = {name: tensor.double() for name, tensor in case.tensors.items()}
    return [run(weights, sizes, begin, row) for row in case.tokens.tolist()]


def without(case: Golden, *keys: str) -> Golden:
    """A golden whose config lacks keys, for which its values are the defaults: the logits are the same."""
    config = {key: value for key, value in case.config.items() if key not in keys}
    return replace(case, name=f"{case.name}_by_default", config=config)
