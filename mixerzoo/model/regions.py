"""Training compiled by the layer: what repeats is compiled once, however many layers there are.

A graph is served to every layer whose arguments look alike, for parameters are its inputs; a step's number is not, so
compiled code is told the number of the first step that is like it, and given a mixer's connections of the step in
place of the mixer. A mixer that asks where it is, or whose state grows, runs between the compiled parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs

from mixerzoo.errors import MixerError
from mixerzoo.mixer import (
    AttentionInputs,
    Connection,
    ConnectionMixer,
    Made,
    Mixer,
    Plan,
    Site,
    State,
    Walk,
    of_zeros,
)
from mixerzoo.model.attention import Attention
from mixerzoo.model.compiled import compiled
from mixerzoo.model.layer import Layer
from mixerzoo.model.past import HeadNorms, KeysAndValues, Past, Reads, Run, Turn
from mixerzoo.model.rope import Rotary

#: Looks of layer, state and connections, each of which takes a graph, of a mixer that is compiled with the layers.
_MOST_LOOKS = 8

#: What of a training step is compiled.
Compiled: TypeAlias = Literal["layers", "whole", "off"]


class Regions:
    """The compiled parts of the steps of one decoder.

    Args:
        plan: of its steps.
        mixer: that joins them.

    Raises:
        MixerError: tokens go one by one, so that nothing could be compiled.
    """

    def __init__(self, plan: Plan, mixer: Mixer) -> None:
        if plan.is_sequential:
            raise MixerError(
                f"mixer {mixer.name!r} lets steps write one slot in turn, so that tokens go one by one through a "
                "cache, where layers are not compiled; set train.compile to off"
            )
        self.plan, self.mixer = plan, mixer
        self.first = _first_alike(plan)
        #: Whether the mixer's own calls are compiled with the layers.
        self.takes_mixer = not plan.hooks and _is_alike(mixer, self.first)
        self._layer = compiled(_layer, dynamic=False)
        self._attention = compiled(_attention, dynamic=False)
        self._heads = compiled(_heads, dynamic=False)
        self._feed = compiled(_feed, dynamic=False)

    def step(
        self, layer: nn.Module, state: State, step: int, reads: Reads, run: Run[Past]
    ) -> tuple[State, KeysAndValues]:
        """As `Layer.forward`.

        Raises:
            MixerError: the decoder has another mixer by now.
        """
        assert isinstance(layer, Layer)
        first = self.first[step]
        mixer, site = run.mixer, Site(step, self.plan.order[step], "attention")
        if mixer is not self.mixer:
            raise MixerError("the mixer was replaced after compile_training; call that once more")
        if self.takes_mixer:
            if _connects(mixer):
                here: Any = _Here(mixer.name, *_connections(mixer, step, site.layer))
                run = run._replace(mixer=here)
            found: tuple[State, KeysAndValues] = self._layer(layer, state, first, reads, run)
            return found
        stream = mixer.read(state, site)
        turn = Turn(site, state, stream, None, reads, run)
        if not self.plan.hooks:
            like = turn._replace(site=site._replace(step=first, layer=self.plan.order[first]), state=None)
            y, written = self._attention(layer, stream, like)
        elif isinstance(layer.self_attn, Attention):
            state, y, written = self._hooked(layer, layer.self_attn, stream, turn)
        else:
            state, y, written, *_ = layer.self_attn(layer.normed(stream), turn)
        state = mixer.write(state, site, y)
        site = site._replace(branch="mlp")
        return mixer.write(state, site, self._feed(layer, mixer.read(state, site))), written

    def _hooked(
        self, layer: Layer, attention: Attention, stream: Tensor | AttentionInputs, turn: Turn[Past]
    ) -> tuple[State, Tensor, KeysAndValues]:
        """Attention with a mixer that acts within it."""
        raw = "mix_raw_kv" in self.plan.hooks
        x, q, k, v = self._heads(layer, stream, turn.run.rotary, turn.owns_k, turn.owns_v, not raw)
        return attention.attended(x, q, k, v, turn, attention if raw else _Done())


class _Here(NamedTuple):
    """A mixer's part of one step, in place of the mixer, whose parameters of other steps would be part of the graph."""

    name: str
    attention: Connection
    mlp: Connection

    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        return self._at(site).read(state)

    def write(self, state: State, site: Site, y: Tensor) -> State:
        return self._at(site).write(state, y)

    def _at(self, site: Site) -> Connection:
        return self.attention if site.branch == "attention" else self.mlp


def _layer(layer: Layer, state: State, step: int, reads: Reads, run: Run[Past]) -> tuple[State, KeysAndValues]:
    return layer.forward(state, step, reads, run)


def _attention(layer: Layer, stream: Tensor | AttentionInputs, turn: Turn[Past]) -> tuple[Tensor, KeysAndValues]:
    x, norm = layer.attention_input(stream, turn.run.plan)
    _, y, written, *_ = layer.self_attn(x, turn._replace(norm=norm))
    return y, written


def _heads(
    layer: Layer, stream: Tensor | AttentionInputs, rotary: Rotary, owns_k: bool, owns_v: bool, norms: bool
) -> tuple[Tensor | AttentionInputs, Tensor, Tensor | None, Tensor | None]:
    """Normed inputs, and their heads before or after head norm and RoPE."""
    attention, x = layer.self_attn, layer.normed(stream)
    assert isinstance(attention, Attention)
    q, k, v = attention.project(x, None, owns_k, owns_v)
    if norms:
        q, k = attention.query(q, rotary), None if k is None else attention.key(k, rotary)
    return x, q, k, v


def _feed(layer: Layer, stream: Tensor) -> Tensor:
    return layer.feed(stream)


class _Done(HeadNorms):
    """Head norm and RoPE of heads that have them already."""

    def query(self, q: Tensor, rotary: Rotary) -> Tensor:
        return q

    def key(self, k: Tensor, rotary: Rotary) -> Tensor:
        return k


def _first_alike(plan: Plan) -> tuple[int, ...]:
    """For each step the first one that reads, writes and sees the same, but for which slots they are."""
    seen: dict[object, int] = {}
    found = []
    for step in range(len(plan.order)):
        own = (plan.owns_k(step), plan.owns_v(step), plan.window(step))
        writes_one = plan.k_writes[step] == plan.v_writes[step]
        reads = tuple(
            tuple(slot == written for slot in slots)
            for slots, written in (
                (plan.k_reads[step], plan.k_writes[step]),
                (plan.v_reads[step], plan.v_writes[step]),
            )
        )
        found.append(seen.setdefault((own, writes_one, reads), step))
    return tuple(found)


class _Asked(Exception):
    """A mixer asked where it is."""


class _Anywhere:
    """A site that does not say where it is."""

    def __getattr__(self, name: str) -> Any:
        raise _Asked

    def __getitem__(self, item: object) -> Any:
        raise _Asked

    def __iter__(self) -> Any:
        raise _Asked

    def __eq__(self, other: object) -> bool:
        raise _Asked

    def __hash__(self) -> int:
        raise _Asked


def _connections(mixer: ConnectionMixer[Any], step: int, layer: int) -> tuple[Connection, Connection]:
    """Those of a step's attention and MLP."""
    return mixer.connection(Site(step, layer, "attention")), mixer.connection(Site(step, layer, "mlp"))


def _is_alike(mixer: Mixer, first: tuple[int, ...]) -> bool:
    """Whether `read` and `write` do the same at every site but for parameters, so that few graphs serve all layers.

    The mixer itself is not called. One that fails on zeros is not taken.

    Args:
        mixer: on any device.
        first: for each step the first one that is like it.
    """
    twin = of_zeros(mixer, torch.float32).eval()
    calls = Walk(twin, torch.float32, num_tokens=1).made()
    try:
        with torch.no_grad(), torch.device("cpu"):
            if _connects(twin):
                return _num_looks(twin, calls, first) <= _MOST_LOOKS
            nowhere: Any = _Anywhere()
            state = next(calls).state
            y = twin.read(state, nowhere)
            return isinstance(y, Tensor) and _look(state) == _look(twin.write(state, nowhere, y))
    except (_Asked, NotImplementedError, RuntimeError):
        return False


def _connects(mixer: Mixer) -> TypeIs[ConnectionMixer[Any]]:
    """Whether a mixer reads and writes by its connections alone."""
    kind = type(mixer)
    return issubclass(kind, ConnectionMixer) and (kind.read, kind.write) == (
        ConnectionMixer.read,
        ConnectionMixer.write,
    )


def _num_looks(mixer: ConnectionMixer[Any], calls: Iterator[Made], first: tuple[int, ...]) -> float:
    """How many graphs the layers of a decoder take; infinitely many where a connection gives an MLP three inputs."""
    looks = set()
    for made in calls:
        if made.site is None or made.hook != "read":
            continue
        if made.site.branch == "attention":
            step, layer, _ = made.site
            looks.add((first[step], _look(made.state), *map(_look, _connections(mixer, step, layer))))
        elif len(made.given) > 1:
            return float("inf")
    return len(looks)


def _look(part: Any) -> object:
    """What of a state or a connection is part of compiled code: types, shapes, numbers and flags."""
    if isinstance(part, Tensor):
        return tuple(part.shape), part.dtype
    if isinstance(part, nn.Module):
        plain = sorted((name, value) for name, value in vars(part).items() if isinstance(value, int | float | str))
        parts = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *part.named_children()]
        return type(part), tuple(plain), tuple((name, _look(each)) for name, each in parts)
    if isinstance(part, tuple | list):
        return type(part), tuple(map(_look, part))
    return repr(part)
