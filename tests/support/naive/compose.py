"""A composition: the stream of one part, and the attention of the others."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from mixerzoo import AttentionMixer, Mixer, ParameterRole, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, Heads, Rotation, TokenMixer, Vectors

CASES = (
    ZooCase("compose", {"of": [{"name": "denseformer"}, {"name": "depth_attention"}]}, label="denseformer+depth"),
    ZooCase("compose", {"of": [{"name": "depth_attention", "stride": 1}]}, POST_ROPE, label="depth"),
    ZooCase(
        "compose",
        {"of": [{"name": "depth_attention", "stride": 2}, {"name": "attn_res", "block_size": 2}]},
        LOOPED,
        label="depth+attn_res",
    ),
    ZooCase("compose", {"of": [{"name": "lime"}, {"name": "moda"}]}, label="lime+moda"),
    ZooCase("compose", {"of": [{"name": "smear"}, {"name": "fusedkv"}]}, POST_ROPE, label="smear+fusedkv"),
)
OPTIONS = st.sampled_from([case.options for case in CASES])


class Composed(TokenMixer):
    """Asks the stream for x, and each part in turn for keys and values.

    Args:
        embedding: of the token [D].
        stream: the part that mixes the residual stream.
        attention: the parts that act inside attention.
    """

    def __init__(self, embedding: Tensor, stream: TokenMixer, attention: Sequence[TokenMixer]) -> None:
        super().__init__(embedding)
        self.stream, self.attention = stream, attention

    def follow(self, before: Sequence[Any]) -> None:
        self.stream.follow([each.stream for each in before])
        for number, part in enumerate(self.attention):
            part.follow([each.attention[number] for each in before])

    def read(self, step: int, layer: int, branch: str) -> Vectors:
        x = self.stream.read(step, layer, branch)
        for part in self.attention:
            # Where a part looks at the stream, it sees what the value projection does.
            part.x = x[2] if isinstance(x, tuple) else x
        return x

    def mix_raw_kv(self, step: int, layer: int, k: list[Tensor], v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for part in self._told():
            k, v = part.mix_raw_kv(step, layer, k, v)
        return k, v

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        for part in self._told():
            k, v = part.mix_kv(step, layer, q, k, v)
        return k, v

    def fuse_kv(
        self, step: int, layer: int, keys: list[list[Tensor]], values: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (part,) = (part for part in self.attention if type(part).fuse_kv is not TokenMixer.fuse_kv)
        return part.fuse_kv(step, layer, keys, values)

    def depth_kv(self, step: int, layer: int, q: list[Tensor], rotate: Rotation) -> tuple[Heads, Heads]:
        keys: Heads = []
        values: Heads = []
        for part in self._told():
            part_keys, part_values = part.depth_kv(step, layer, q, rotate)
            keys, values = keys + part_keys, values + part_values
        return keys, values

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        for part in self._told():
            part.write(step, layer, branch, y)

    def finish(self) -> Tensor:
        return self.stream.finish()

    def _told(self) -> list[TokenMixer]:
        """The parts, each with what the attention's projections read."""
        parts = [self.stream, *self.attention]
        for part in parts:
            part.normed = self.normed
        return parts


def reference_of(part: Mixer) -> Reference:
    """The reference of a part."""
    found: Reference = importlib.import_module(f"naive.{part.name}").REFERENCE
    return found


def parts_of(mixer: Mixer) -> tuple[list[Mixer], list[Mixer]]:
    """The parts that mix the stream (one at most), and those that act inside attention."""
    parts: list[Mixer] = [mixer.get_submodule(f"parts.{choice.name}") for choice in mixer.config.of]  # type: ignore
    attention = [part for part in parts if isinstance(part, AttentionMixer)]
    return [part for part in parts if part not in attention], attention


def begin(mixer: Mixer) -> Begin:
    streams, attention = ([reference_of(p).begin(p) for p in parts] for parts in parts_of(mixer))

    def make(embedding: Tensor, token: int) -> TokenMixer:
        stream = streams[0](embedding, token) if streams else TokenMixer(embedding)
        return Composed(embedding, stream, [part(embedding, token) for part in attention])

    return make


def flops_per_token(mixer: Mixer) -> int:
    total = 0
    for parts in parts_of(mixer):
        for part in parts:
            count = reference_of(part).flops_per_token
            assert count is not None
            total += count(part)
    return total


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """Those of the parts in the order in which they are listed, each once."""
    named: dict[Site | None, None] = {}
    for choice in mixer.config.of:  # type: ignore[attr-defined]
        part = mixer.get_submodule(f"parts.{choice.name}")
        read = reference_of(part).sources  # type: ignore[arg-type]
        assert read is not None
        named |= dict.fromkeys(read(part, site))
    return tuple(named)


def plan(mixer: Mixer) -> dict[str, bool]:
    """What one part needs is needed; heads are apart where they are for every part in attention, if there is one."""
    streams, attention = ([_planned(part) for part in parts] for parts in parts_of(mixer))
    return {
        "needs_own_kv": any(fields.get("needs_own_kv", False) for fields in streams + attention),
        "separate_inputs": any(fields.get("separate_inputs", False) for fields in streams + attention),
        "heads_apart": bool(attention) and all(fields.get("heads_apart", False) for fields in attention),
    }


def _planned(part: Mixer) -> Mapping[str, Any]:
    tell = reference_of(part).plan
    return {} if tell is None else tell(part)


def shown(mixer: Mixer) -> set[str]:
    """What the parts show."""
    names: set[str] = set()
    for part in itertools.chain(*parts_of(mixer)):
        if (tell := reference_of(part).shown) is not None:
            names |= set(tell(part))
    return names


def initial(mixer: Mixer) -> dict[str, float | Tensor | Drawn]:
    """What each part's parameters start at, where its reference says so."""
    found: dict[str, float | Tensor | Drawn] = {}
    for part in itertools.chain(*parts_of(mixer)):
        if (tell := reference_of(part).initial) is not None:
            found |= {f"parts.{part.name}.{name}": value for name, value in tell(part).items()}
    return found


REFUSED = tuple(
    Case(SMALL, {"of": parts})
    for parts in (
        [],
        ["lime"],
        [{"name": "denseformer"}, {"name": "attn_res"}],
        [{"name": "depth_attention"}, {"name": "value_residual"}],
        [{"name": "lime"}, {"name": "lime"}],
        [{"name": "moda"}, {"name": "compose"}],
        [{"name": "fusedkv"}, {"name": "yoco"}],
        [{"name": "fusedkv"}, {"name": "lime"}],
    )
)
#: Whose plan has a size that hangs on an option.
PLANNED = tuple(
    Case(SMALL, {"of": [part]})
    for part in ({"name": "cla", "group": 3}, {"name": "yoco", "self_layers": 3, "window": 2}, {"name": "svformer"})
)


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """Each part's."""
    told = [(part.name, reference_of(part).roles, part) for part in itertools.chain(*parts_of(mixer))]
    return {
        f"parts.{name}.{n}": role for name, tell, part in told if tell is not None for n, role in tell(part).items()
    }


# The parts' peaks need not fall together, so no sum of their bytes is the composition's; a test measures these.
REFERENCE = Reference(
    begin,
    flops_per_token=flops_per_token,
    sources=sources,
    initial=initial,
    cases=PLANNED,
    roles=roles,
    refused=REFUSED,
    plan=plan,
    shown=shown,
)
