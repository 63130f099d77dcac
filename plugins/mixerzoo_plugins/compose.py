"""Composition: one mixer of the residual stream with any number that act inside attention."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionInputs,
    AttentionMixer,
    AttentionState,
    Context,
    DecoderShape,
    DepthEntries,
    Hook,
    Mixer,
    MixerCard,
    MixerChoice,
    MixerConfig,
    MixerError,
    MixingWeights,
    ParameterRole,
    Plan,
    Site,
    State,
    hookimpl,
    load_registry,
)

#: What at most one part may have, in words.
_OWNED: dict[Hook, str] = {
    "mix_raw_kv": "keys and values before RoPE",
    "mix_kv": "keys and values before the cache write",
    "fuse_kv": "keys and values of several slots",
    "depth_kv": "entries of the softmax",
    "value_weights": "sums of latents",
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
            [{"name": "attn_res", "block_size": 2}, {"name": "depth_attention", "stride": 2}],
            [{"name": "lime"}, {"name": "moda"}],
            [{"name": "smear"}, {"name": "fusedkv"}],
        ],
    )


class ComposedState(NamedTuple):
    """The stream mixer's state, and what each attention-side mixer remembers."""

    stream: State
    memories: tuple[State, ...]


#: What only a mixer of the residual stream does.
_OF_STREAM = ("start", "read", "write", "finish")


class Compose(Mixer[Config]):
    """Delegates each call to the part that owns it."""

    name = "compose"
    card = MixerCard(
        title="Composition",
        summary="One mixer of the residual stream with any number that act inside attention.",
        paper="",
        equation="x from the stream mixer; k, v, plan and softmax entries from whichever part defines them",
        family="composition",
        acts_on="wherever its parts do",
        parameters="the sum over the parts",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="up to the sum over the parts, the stream counted once",
        notes=(
            "Two parts that define the same thing are refused. Without a stream mixer the stream is the plain "
            "residual one. The cache is vanilla unless a part plans it; then it takes what that part says. The bytes "
            "in flight can be fewer than the sum of the parts' peaks, which need not fall together."
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
        for part in parts.values():
            _refuse_both(part)
        self._plans = {name: part.plan() for name, part in parts.items()}
        self._owner = {hook: _owner(words, self._having(hook)) for hook, words in _OWNED.items()}
        self._planner = _owner("the plan of layers and cache slots", self._planning())
        self._tail_owner = _owner("the tail that the cache keeps", self._keeping_tail())
        if self._planner is not None:
            self.card = replace(self.card, kv_bytes=_kv_bytes(self._part(self._planner)))

    @property
    def stream(self) -> Mixer:
        """The part that mixes the residual stream."""
        return self.residual if self._stream_name is None else self._part(self._stream_name)

    def plan(self) -> Plan:
        plans = self._plans.values()
        slots = Plan.plain(self.shape.order) if self._planner is None else self._plans[self._planner]
        return replace(
            slots,
            hooks=frozenset().union(*(plan.hooks for plan in plans)),
            needs_own_kv=any(plan.needs_own_kv for plan in plans),
            separate_inputs=any(plan.separate_inputs for plan in plans),
            tail=None if self._tail_owner is None else self._plans[self._tail_owner].tail,
            heads_apart=any(plan.hooks for plan in plans) and all(plan.heads_apart for plan in plans if plan.hooks),
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for part in self._parts():
            part.reset_parameters(generator, std)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {
            f"parts.{name}.{parameter}": role
            for name in self.parts
            for parameter, role in self._part(name).parameter_roles().items()
        }

    def tail(self, x: Tensor, context: Context) -> Tensor:
        assert self._tail_owner is not None
        return self._part(self._tail_owner).tail(x, context)

    def start(self, x: Tensor, context: Context) -> ComposedState:
        memories = tuple(self._attention_part(name).remember(x, context) for name in self._attention)
        return ComposedState(self.stream.start(x, context), memories)

    def read(self, state: ComposedState, site: Site) -> Tensor | AttentionInputs:
        return self.stream.read(state.stream, site)

    def mix_raw_kv(self, state: ComposedState, call: AttentionCall) -> tuple[ComposedState, Tensor, Tensor]:
        name = self._owner_of("mix_raw_kv")
        inner, k, v = self._part(name).mix_raw_kv(self._inner(state, name), call)
        return self._remembering(state, name, inner), k, v

    def mix_kv(self, state: ComposedState, call: AttentionCall) -> tuple[ComposedState, Tensor, Tensor]:
        name = self._owner_of("mix_kv")
        inner, k, v = self._part(name).mix_kv(self._inner(state, name), call)
        return self._remembering(state, name, inner), k, v

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self._part(self._owner_of("fuse_kv")).fuse_kv(site, keys, values)

    def depth_kv(self, state: ComposedState, call: AttentionCall) -> DepthEntries | None:
        name = self._owner_of("depth_kv")
        return self._part(name).depth_kv(self._inner(state, name), call)

    def write(self, state: ComposedState, site: Site, y: Tensor) -> ComposedState:
        memories = tuple(
            self._attention_part(name).absorb(self._absorbing(state, site, name), site, y) for name in self._attention
        )
        return ComposedState(self.stream.write(state.stream, site, y), memories)

    def finish(self, state: ComposedState) -> Tensor:
        return self.stream.finish(state.stream)

    def value_weights(self, state: ComposedState, site: Site) -> Tensor:
        name = self._owner_of("value_weights")
        return self._part(name).value_weights(self._inner(state, name), site)

    def last_token(self, state: ComposedState) -> ComposedState | None:
        stream = self.stream.last_token(state.stream)
        inner = [self._attention_part(name).last_token(self._inner(state, name)) for name in self._attention]
        if stream is None or None in inner:
            return None
        return ComposedState(stream, tuple(part.memory for part in inner if part is not None))

    def mixing_weights(
        self, state: ComposedState, site: Site, call: AttentionCall | None = None
    ) -> MixingWeights | None:
        if call is None:
            return _naming(self.stream, site, self.stream.mixing_weights(state.stream, site))
        name = self._owner["mix_kv"]
        if name is None:
            return None
        part = self._part(name)
        return _naming(part, site, part.mixing_weights(self._inner(state, name), site, call))

    def write_weights(self, state: ComposedState, site: Site, y: Tensor) -> MixingWeights | None:
        return _naming(self.stream, site, self.stream.write_weights(state.stream, site, y))

    def final_weights(self, state: ComposedState) -> MixingWeights | None:
        return self.stream.final_weights(state.stream)

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

    def _having(self, hook: Hook) -> list[str]:
        return [name for name, plan in self._plans.items() if hook in plan.hooks]

    def _planning(self) -> list[str]:
        plain = Plan.plain(self.shape.order)
        return [name for name, plan in self._plans.items() if plan.slots != plain]

    def _keeping_tail(self) -> list[str]:
        return [name for name, plan in self._plans.items() if plan.tail is not None]

    def _owner_of(self, hook: Hook) -> str:
        name = self._owner[hook]
        # The plan lists no hook without one.
        assert name is not None
        return name

    def _inner(self, state: ComposedState, name: str) -> State:
        """The state that a part's hook is given."""
        if name not in self._attention:
            return state.stream
        return AttentionState(None, state.memories[self._attention.index(name)])

    def _absorbing(self, state: ComposedState, site: Site, name: str) -> AttentionState:
        """The same after a sublayer, with what it read for a part that asks for it."""
        inner: AttentionState = self._inner(state, name)
        if not self._attention_part(name).reads_stream:
            return inner
        x = self.stream.read(state.stream, site)
        return inner._replace(x=x.v if isinstance(x, AttentionInputs) else x)

    def _remembering(self, state: ComposedState, name: str, inner: State) -> ComposedState:
        """The state after a part's hook returned ``inner``."""
        if name not in self._attention:
            return state._replace(stream=inner)
        place = self._attention.index(name)
        return state._replace(memories=(*state.memories[:place], inner.memory, *state.memories[place + 1 :]))


def _refuse_both(part: Mixer) -> None:
    """Raise MixerError if a part is an `AttentionMixer` and mixes the residual stream, which nobody would ask it to."""
    own = [name for name in _OF_STREAM if getattr(type(part), name) is not getattr(AttentionMixer, name)]
    if isinstance(part, AttentionMixer) and own:
        raise MixerError(
            f"compose: {part.name!r} acts inside attention and defines {', '.join(own)} of the residual stream too; "
            "what it remembers belongs in remember and absorb, and a mixer of the stream derives from Mixer"
        )


def _naming(part: Mixer, site: Site, given: MixingWeights | None) -> MixingWeights | None:
    """Weights with the names that the part itself would give them, as `sources` of the whole are those of all parts."""
    return given and given._replace(names=given.named(part.sources(site)))


def _kv_bytes(part: Mixer) -> str:
    """The formula of a part's card, with the values of its options for their names; in words where one is no number."""
    formula, words = part.card.kv_bytes, ""
    for name, value in part.config:
        if isinstance(value, int | float) and not isinstance(value, bool):
            formula = re.sub(rf"\b{name}\b", str(value), formula)
        elif re.search(rf"\b{name}\b", formula):
            words = f" with the options of {part.name}"
    return formula + words


def _owner(words: str, names: Sequence[str]) -> str | None:
    """The one part, if any, that has what only one may have.

    Raises:
        MixerError: several do.
    """
    if len(names) > 1:
        raise MixerError(f"compose: {' and '.join(map(repr, names))} each define {words}; keep one of them")
    return names[0] if names else None


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Compose]
