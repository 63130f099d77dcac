"""A case of the tests' zoo: a mixer with options, on a small decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mixerzoo import LoopConfig, Mixer

#: A key norm after RoPE makes logits depend on absolute positions, so wrong ones show.
POST_ROPE: Mapping[str, Any] = {"k_norm": "post_rope"}
#: Sizes of a decoder of which nothing is asked but that it is one.
SMALL = {"num_layers": 4, "num_heads": 2, "hidden_size": 8, "intermediate_size": 8}
LOOPED: Mapping[str, Any] = {"loop": LoopConfig(prelude=1, coda=1, count=2)}
#: Every size is its own, so none can stand for another.
LATENT: Mapping[str, Any] = {
    "attention": "mla",
    "mla": {"kv_lora_rank": 7, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8},
    "num_heads": 3,
    "num_kv_heads": None,
    "head_dim": None,
}


@dataclass(frozen=True)
class ZooCase:
    """A mixer with options, on a decoder.

    Attributes:
        mixer: its name, registered or in `adhoc`.
        options: of its ``Config``.
        model: what differs from `zoo.MODEL`.
        label: stands for the options in the names of tests.
    """

    mixer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in self.options.items()] if self.label is None else [self.label]
        looped = ["looped"] if "loop" in self.model else []
        k_norm = [self.model["k_norm"]] if "k_norm" in self.model else []
        latent = ["latent"] if "mla" in self.model else []
        return "-".join([self.mixer, *filter(None, options), *looped, *latent, *k_norm])

    def __hash__(self) -> int:
        return hash(str(self))


def planned_reads(slots: Callable[..., tuple[Any, Any, Any]], mixer: Mixer) -> dict[str, tuple[Any, ...]]:
    """The slots that each step reads, as fields of a `Plan`.

    Args:
        slots: given a step, the number of steps and options: whose keys and whose values the step attends to.
        mixer: is built.
    """
    options, num_steps = mixer.config.model_dump(), mixer.shape.num_steps
    steps = [slots(step, num_steps, **options) for step in range(num_steps)]
    return {"k_reads": tuple((k,) for k, _, _ in steps), "v_reads": tuple((v,) for _, v, _ in steps)}


#: Where one case will do: every layer reads the ones before it.
DEPTH = ZooCase("depth_attention", {"stride": 1})
