"""Composition: one mixer of the residual stream with any number that act inside attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    DepthEntries,
    Mixer,
    MixerCard,
    MixerChoice,
    MixerConfig,
    MixerError,
    ParameterRole,
    Plan,
    Site,
    State,
    hookimpl,
    load_registry,
)

#: What at most one part may define, in words.
_OWNED = {
    "plan": "the plan of layers and cache slots",
    "mix_raw_kv": "keys and values before RoPE",
    "mix_kv": "keys and values before the cache write",
    "depth_kv": "entries of the softmax",
}


#: More mixers than that cannot act together.
_MOST = 32


def _as_tuple(value: Any) -> Any:
    """YAML and JSON have lists only. What the names alone forbid is refused before any part is looked into."""
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise ValueError("list at least one mixer, such as [{name: denseformer}, {name: depth_attention}]")
    if len(value) > _MOST:
        # The length of a tuple is checked beside its parts; those that are wrong do not count.
        raise ValueError(f"a composition of {len(value):,} mixers is too long; at most {_MOST} are joined")
    seen: set[str] = set()
    for part in value:
        name = part.name if isinstance(part, MixerChoice) else part.get("name") if isinstance(part, Mapping) else None
        if name == Compose.name:
            raise ValueError("a composition cannot contain a composition; list all mixers in one")
        if isinstance(name, str):
            if name in seen:
                raise ValueError(f"{name[:60]!r} is listed twice")
            seen.add(name)
    return tuple(value)


class Config(MixerConfig):
    """Options of a composition."""

    of: Annotated[tuple[MixerChoice, ...], Field(max_length=_MOST), BeforeValidator(_as_tuple)] = Field(
        description="The mixers, each {name: …, **options}; at most one of them mixes the residual stream.",
        examples=[
            [{"name": "denseformer"}, {"name": "depth_attention"}],
            [{"name": "depth_attention", "stride": 1}],
            [{"name": "attn_res", "block_size": 2}, {"name": "depth_attention", "stride": 2}],
        ],
    )


class ComposedState(NamedTuple):
    """The stream mixer's state, and what each attention-side mixer remembers."""

    stream: State
    memories: tuple[State, ...]


class Compose(Mixer):
    """Delegates each call to the part that owns it."""

    name = "compose"
    Config = Config
    card = MixerCard(
        title="Composition",
        summary="One mixer of the residual stream with any number that act inside attention.",
        paper="",
        equation="x from the stream mixer; k, v, plan and softmax entries from whichever part defines them",
        family="composition",
        acts_on="wherever its parts do",
        parameters="the sum over the parts",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="the sum over the parts, the stream counted once",
        notes=(
            "Two parts that define the same thing are refused. Without a stream mixer the stream is the plain "
            "residual one. The cache is vanilla unless a part plans it. The bytes in flight are the sum of the "
            "parts' peaks, which need not fall together."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        parts: dict[str, Mixer] = {}
        for choice in config.of:
            parts[choice.name] = load_registry().get(choice.name).mixer(choice.options, shape)
        self.parts = nn.ModuleDict(parts)
        streams = [part for part in parts.values() if not isinstance(part, AttentionMixer)]
        if len(streams) > 1:
            names = " and ".join(repr(part.name) for part in streams)
            raise MixerError(f"compose: {names} each mix the residual stream; keep one of them")
        self._stream_name = streams[0].name if streams else None
        if not streams:
            self.residual = load_registry().get("residual").mixer(MixerConfig(), shape)
        self._attention = tuple(part.name for part in parts.values() if isinstance(part, AttentionMixer))
        self._owner = {method: _owner(method, list(parts.values())) for method in _OWNED}
        self.needs_own_kv = any(part.needs_own_kv for part in parts.values())
        self.separate_inputs = any(part.separate_inputs for part in parts.values())

    @property
    def stream(self) -> Mixer:
        """The part that mixes the residual stream."""
        return self.residual if self._stream_name is None else self._part(self._stream_name)

    def defines(self, hook: str) -> bool:
        return any(part.defines(hook) for part in self._parts())

    def plan(self) -> Plan:
        owner = self._owner["plan"]
        return super().plan() if owner is None else self._part(owner).plan()

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for part in self._parts():
            part.reset_parameters(generator, std)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {
            f"parts.{name}.{parameter}": role
            for name in self.parts
            for parameter, role in self._part(name).parameter_roles().items()
        }

    def start(self, x: Tensor, context: Context) -> ComposedState:
        memories = tuple(self._attention_part(name).remember(x, context) for name in self._attention)
        return ComposedState(self.stream.start(x, context), memories)

    def read(self, state: ComposedState, site: Site) -> Tensor | AttentionInputs:
        return self.stream.read(state.stream, site)

    def mix_raw_kv(
        self, state: ComposedState, site: Site, k: Tensor, v: Tensor
    ) -> tuple[ComposedState, Tensor, Tensor]:
        name = self._owner["mix_raw_kv"]
        if name is None:
            return state, k, v
        inner, k, v = self._part(name).mix_raw_kv(self._inner(state, site, name), site, k, v)
        return self._remembering(state, name, inner), k, v

    def mix_kv(
        self, state: ComposedState, site: Site, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[ComposedState, Tensor, Tensor]:
        name = self._owner["mix_kv"]
        if name is None:
            return state, k, v
        inner, k, v = self._part(name).mix_kv(self._inner(state, site, name), site, q, k, v)
        return self._remembering(state, name, inner), k, v

    def depth_kv(
        self, state: ComposedState, site: Site, q: Tensor, rotate: Callable[[Tensor], Tensor]
    ) -> DepthEntries | None:
        name = self._owner["depth_kv"]
        return None if name is None else self._part(name).depth_kv(self._inner(state, site, name), site, q, rotate)

    def write(self, state: ComposedState, site: Site, y: Tensor) -> ComposedState:
        memories = tuple(
            self._attention_part(name).absorb(self._inner(state, site, name), site, y) for name in self._attention
        )
        return ComposedState(self.stream.write(state.stream, site, y), memories)

    def finish(self, state: ComposedState) -> Tensor:
        return self.stream.finish(state.stream)

    def value_weights(self, state: ComposedState, site: Site) -> Tensor:
        name = self._owner["mix_kv"]
        assert name is not None
        return self._part(name).value_weights(self._inner(state, site, name), site)

    def last_token(self, state: ComposedState) -> ComposedState | None:
        if any(memory != () for memory in state.memories):
            return None
        stream = self.stream.last_token(state.stream)
        return None if stream is None else ComposedState(stream, state.memories)

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        one_stream = self.shape.hidden_size * dtype.itemsize
        beside = sum(self._part(name).in_flight_bytes(dtype) - one_stream for name in self._attention)
        return self.stream.in_flight_bytes(dtype) + beside

    def flops_per_token(self) -> int:
        return sum(part.flops_per_token() for part in self._parts())

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        named = [source for part in self._parts() for source in part.sources(site)]
        return tuple(dict.fromkeys(named))

    def _parts(self) -> list[Mixer]:
        return [self._part(name) for name in self.parts]

    def _part(self, name: str) -> Mixer:
        part = self.parts[name]
        assert isinstance(part, Mixer)
        return part

    def _attention_part(self, name: str) -> AttentionMixer:
        part = self.parts[name]
        assert isinstance(part, AttentionMixer)
        return part

    def _inner(self, state: ComposedState, site: Site, name: str) -> State:
        """The state that a part's hook is given."""
        if name not in self._attention:
            return state.stream
        x: Any = None
        if self._attention_part(name).reads_stream:
            x = self.stream.read(state.stream, site)
            x = x.v if isinstance(x, AttentionInputs) else x
        return AttentionState(x, state.memories[self._attention.index(name)])

    def _remembering(self, state: ComposedState, name: str, inner: State) -> ComposedState:
        """The state after a part's hook returned ``inner``."""
        if name not in self._attention:
            return state._replace(stream=inner)
        place = self._attention.index(name)
        return state._replace(memories=(*state.memories[:place], inner.memory, *state.memories[place + 1 :]))


def _owner(method: str, parts: Sequence[Mixer]) -> str | None:
    """Name of the part that defines a method.

    Raises:
        MixerError: two of them do.
    """
    names = [part.name for part in parts if part.defines(method)]
    if len(names) > 1:
        raise MixerError(f"compose: {' and '.join(map(repr, names))} each define {_OWNED[method]}; keep one of them")
    return names[0] if names else None


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Compose]
